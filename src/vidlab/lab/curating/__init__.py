"""``curate.py curation=RECIPE``: raw videos to training data."""
