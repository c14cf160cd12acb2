"""One thing at a time: a stage, a start, a worker, a folder."""
