"""Several HTTP workers before the one process that has the model."""
