"""Captions -> ``TextEmbedding``: a learned word encoder, and frozen pretrained encoders."""

from vidlab.text.base import TextEncoder
from vidlab.text.words import WordsEncoder

__all__ = ["TextEncoder", "WordsEncoder"]
