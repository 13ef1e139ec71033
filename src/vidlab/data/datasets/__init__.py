"""Data sets in the forms they are distributed in; each is a source of an index."""
