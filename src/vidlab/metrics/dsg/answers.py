"""Whether a frame shows an object, by a multimodal language model."""

import re

PROMPT = "{question} Answer with one word, yes or no."
WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def answer_prompt(question: str) -> str:
    """What a multimodal model is asked of a frame."""
    return PROMPT.format(question=question)


def parse_answer(text: str) -> bool | None:
    """True for yes, False for no, None for an answer that is neither: one that has both words, or none."""
    words = {word.lower() for word in WORD.findall(text)}
    return None if len(words) != 1 else words == {"yes"}
