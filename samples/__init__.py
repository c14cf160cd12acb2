"""Rendered blood smears: the renderer and the three pictures made with it."""
