"""`python -m server doctor`: would the server start here, on what, and if not, what to do."""
