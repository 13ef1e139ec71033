"""Scores of generated and reconstructed clips. ``base.py`` states what they all share."""
