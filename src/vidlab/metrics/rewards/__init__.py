"""Differentiable scores of pixels, for reward learning (``vidlab.losses.reward``)."""
