"""Image files to letterboxed canvases, candidates to boxes, and drawing: plain functions."""
