"""Hours of load, overload, reloads and rude clients, and what they leave."""
