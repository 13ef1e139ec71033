"""Averages of any length out of the snapshots of a run."""
