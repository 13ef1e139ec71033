"""The objects that a caption speaks of, and a question for each, by a language model."""

import json
import re
from dataclasses import dataclass
from typing import Any

PROMPT = """List every physical object, person, animal and place that this video caption says can be seen. Leave out \
actions, camera movements, moods and what the caption says is absent. Name each thing once, with the attributes that \
the caption gives it, and write for each a question that can be answered with yes or no by looking at one frame.

Caption: {caption}

Answer with a JSON list and nothing else, such as
[{{"object": "brown dog", "question": "Is there a brown dog in the picture?"}}]"""

LIST = re.compile(r"\[.*\]", re.DOTALL)


@dataclass(frozen=True)
class ObjectQuestion:
    """An object of a caption and what is asked of each frame."""

    object: str
    question: str


def question_prompt(caption: str) -> str:
    """What a language model is asked of a caption."""
    return PROMPT.format(caption=caption)


def parse_questions(text: str) -> list[ObjectQuestion] | None:
    """The objects in a model's answer, each once; None where it is no list of objects and questions.

    Text around the list is passed over, and an empty list is a caption without objects.
    """
    found = LIST.search(text)
    try:
        items: Any = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list):
        return None
    questions: dict[str, ObjectQuestion] = {}
    for item in items:
        name, question = (item.get(key) for key in ("object", "question")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(question, str) or not name.strip() or not question.strip():
            return None
        questions.setdefault(" ".join(name.lower().split()), ObjectQuestion(name.strip(), question.strip()))
    return list(questions.values())
