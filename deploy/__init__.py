"""Growing out of one machine, on engines that exist."""
