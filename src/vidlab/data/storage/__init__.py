"""Clips on disk: the index, tar shards and encoded clips."""
