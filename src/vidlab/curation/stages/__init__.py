"""The stages of curation: what is measured of clips, and what is decided from it."""
