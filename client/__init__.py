"""A client of the server: pictures in, detections out, over HTTP."""
