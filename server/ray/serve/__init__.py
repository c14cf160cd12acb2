"""The server as an application of Ray Serve: the same app, in as many replicas as are asked for."""
