"""Comparisons of what was evaluated: over seeds for settings, over clips for single checkpoints and videos."""
