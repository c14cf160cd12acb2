"""Measured claims: what docs/ says of speed, accuracy and endurance comes from these commands."""
