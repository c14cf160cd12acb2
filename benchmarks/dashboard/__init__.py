"""Whether the dashboard's queries have answers on a server under load."""
