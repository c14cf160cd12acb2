"""Damaged and costly images through decoding."""
