"""Sequence mixers: layers that let tokens see those before them, by attention or by linear recurrences."""
