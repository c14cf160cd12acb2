"""Several HTTP workers, the fronts, before the one process that has the model."""
