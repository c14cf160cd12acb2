"""Turns a trained checkpoint into the artifact that `server` serves, and verifies it."""
