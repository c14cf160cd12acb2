"""What the attention does inside trained networks."""
