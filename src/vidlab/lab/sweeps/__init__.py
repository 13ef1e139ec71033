"""Sweeps: their jobs on record, one MLflow parent run, going on after an interruption, and the table at the end."""
