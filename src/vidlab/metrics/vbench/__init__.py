"""VBench: dimensions that need no weights, and its published arithmetic."""
