"""Routes and wire formats: what a request may say, and what an answer looks like."""
