"""Frozen image models of video models: found, taken out of a run, or trained once and kept."""
