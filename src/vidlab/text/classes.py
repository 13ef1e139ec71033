"""Class names as prompts: one learned vector for each class, and one for no class."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import nn
from typing_extensions import override

from vidlab.clip import TextEmbedding
from vidlab.errors import UserError
from vidlab.text.base import TextEncoder

LISTED = 5


def class_key(name: str) -> str:
    """What two spellings of one class share: letters and digits, lower-cased; "ApplyEyeMakeup", "apply eye makeup"."""
    return "".join(character for character in name.casefold() if character.isalnum())


class ClassEncoder(TextEncoder):
    """A table with a row for each class and one for the empty caption, learned with the denoiser.

    A caption is the name of a class, however it is spaced and capitalized, and becomes a single token: its row after a
    LayerNorm. ``pooled`` is a learned linear map of that token. The empty caption is the null class, by which
    classifier-free guidance learns what is common to all (Ho and Salimans 2022, arXiv:2207.12598, section 3.2).

    Args:
        classes: names, in the order of the rows; None where nobody has named any yet.
        width: feature dimension D.

    Raises:
        UserError: no classes, two of one name, or a name without a letter.
    """

    def __init__(self, classes: Sequence[str] | None, width: int = 128) -> None:
        if width < 1:
            raise UserError(f"text_encoder.width={width}: must be at least 1.")
        super().__init__(width, max_tokens=1, trainable=True)
        self.classes = tuple(map(str, classes or ()))
        self._rows = _numbered(self.classes)
        self.table = nn.Embedding(1 + len(self.classes), width)  # row 0 is no class
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, width)
        nn.init.normal_(self.table.weight, std=0.1)

    @override
    def count_tokens(self, caption: str) -> int:
        return 1

    @override
    def freeze_pooled(self) -> None:
        self.pool.requires_grad_(False)

    @override
    def check(self, prompt: str) -> None:
        self.row(prompt)

    def row(self, caption: str) -> int:
        """The row of a class's name, 0 for the empty caption.

        Raises:
            UserError: no class has this name; says which are alike.
        """
        found = self._rows.get(class_key(caption)) if caption.strip() else 0
        if found is None:
            raise UserError(f'"{caption[:80]}" is none of the {len(self.classes)} classes. {self._alike(caption)}')
        return found

    @override
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        rows = torch.tensor([self.row(caption) for caption in captions])
        tokens = self.norm(self.table(rows.to(self.table.weight.device, non_blocking=True))[:, None])  # (B, 1, D)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        pooled = self.pool(tokens[:, 0].to(self.pool.weight.dtype))
        return TextEmbedding(tokens, mask, pooled, (1,) * len(captions))

    def _alike(self, caption: str) -> str:
        names = {class_key(name): name for name in self.classes}
        alike = [names[key] for key in get_close_matches(class_key(caption), names, LISTED)]
        some = alike or self.classes[:LISTED]
        more = "" if alike or len(some) == len(self.classes) else ", ..."
        return f'{"Alike are" if alike else "They are"} {", ".join(some)}{more}. "" is no class in particular.'


def _numbered(classes: Sequence[str]) -> dict[str, int]:
    if not classes:
        raise UserError(
            "text_encoder.classes is not set: give the names of the classes, text_encoder.classes=[walking,running], "
            "or take data that has classes, such as data=ucf101."
        )
    rows: dict[str, int] = {}
    for number, name in enumerate(classes, start=1):
        key = class_key(name)
        if not key:
            raise UserError(f'text_encoder.classes: "{name}" has no letter and no digit.')
        if key in rows:
            raise UserError(f'text_encoder.classes: "{name}" and "{classes[rows[key] - 1]}" are one name.')
        rows[key] = number
    return rows
