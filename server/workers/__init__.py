"""Several HTTP processes, the fronts, before the one process that has the model."""
