"""Metrics, logs, traces, and what the GPU counts."""
