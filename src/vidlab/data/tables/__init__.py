"""Readers of tables, lists and captions that others wrote."""
