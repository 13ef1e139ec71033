"""Frozen networks: features that metrics and losses measure with, edge detectors, a detector of cuts."""
