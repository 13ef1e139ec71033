"""Metrics between sets of clips, by features of a frozen network."""
