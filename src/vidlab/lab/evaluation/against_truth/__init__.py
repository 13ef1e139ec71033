"""Held-out clips of which some frames are given and the others made: against the truth and what needs no model."""
