"""Terms added to an objective."""
