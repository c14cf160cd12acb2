"""Admission, queue, batches, decoding and a model's life: asyncio, no web framework."""
