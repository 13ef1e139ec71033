"""Sampling plans: which clips form each batch, by epochs, buckets and source weights, and exact resume."""
