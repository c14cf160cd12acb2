"""The proof that an artifact answers as its source does."""
