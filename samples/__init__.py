"""Rendered blood smears: the renderer and the three images made with it."""
