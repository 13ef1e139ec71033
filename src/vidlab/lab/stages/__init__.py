"""Graphs of trainings: a published model is rarely one run, but stages that start from each other's weights."""
