"""Runs on disk: finding, locking, starting, resuming, recording and summarizing them."""
