"""From checkpoints or videos to a table of scores that can be compared."""
