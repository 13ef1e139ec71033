"""One page about the runs of a sweep: which configuration is better, at what cost, and how its videos look."""
