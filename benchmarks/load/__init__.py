"""The load generator: clients, their loops, and the servers they load."""
