"""Which clips make each batch: epochs, buckets, source weights, images between videos, resuming."""
