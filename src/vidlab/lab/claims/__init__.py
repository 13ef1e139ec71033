"""Published numbers of the four papers next to what vidlab computes: ``python -m vidlab.lab.claims``."""
