"""Runs: composition, tracking, resuming, summaries, generation."""
