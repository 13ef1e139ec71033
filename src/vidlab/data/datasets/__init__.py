"""Data sets as they are found or distributed, each a source of an index."""
