"""Regularizers: loss terms that are added to an objective's, and the losses of autoencoder training."""
