"""Averages over power functions of the step, any length of which can be had after training."""
