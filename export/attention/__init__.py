"""Attentions: how each is recognised and exported, all of them in `table`."""
