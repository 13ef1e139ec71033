"""Prompt refiner: a language model that expands short prompts into captions like those of the training data."""
