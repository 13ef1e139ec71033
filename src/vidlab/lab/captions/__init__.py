"""The stages of curation that have to do with texts: captions, their check, and the prompt refiner."""
