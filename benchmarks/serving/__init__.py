"""The server beside its peers: throughput, latency, memory."""
