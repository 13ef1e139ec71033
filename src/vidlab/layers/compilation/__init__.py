"""What becomes one kernel, and how blocks are compiled."""
