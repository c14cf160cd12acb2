"""The detector on Ray: `serve` answers over HTTP, `detect_folder` goes through stored images.

Nothing here is to be imported as `ray.…`: `deploy/` must never be on `sys.path` itself.
"""
