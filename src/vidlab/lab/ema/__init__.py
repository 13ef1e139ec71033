"""Post-hoc EMA: averaged weights of any length, out of the snapshots of a run."""
