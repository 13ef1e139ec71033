"""Fault injection: what a training makes of failures that are caused on purpose."""
