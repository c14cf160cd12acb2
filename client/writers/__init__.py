"""Results as files: what `python -m client detect` writes."""
