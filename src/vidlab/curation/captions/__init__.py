"""Captions for clips: who writes them, how they are cleaned, and the data set that has them."""
