"""Several processes that train together: which of them share what, and what they send each other."""
