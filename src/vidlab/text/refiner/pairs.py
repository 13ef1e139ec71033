"""Pairs of a short prompt and the caption it is to become, one JSON object a line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vidlab.errors import UserError
from vidlab.files import write_text

PAIRS = "pairs.jsonl"
"""The file of pairs, in the folder that is made of them."""


@dataclass(frozen=True)
class PromptPair:
    """A short prompt and its expansion; ``source`` says who wrote the expansion."""

    prompt: str
    refined: str
    source: str = ""


def read_pairs(path: Path | str) -> list[PromptPair]:
    """The pairs of a JSON-lines file with ``prompt`` and ``refined``.

    Raises:
        UserError: no such file, or a line that is no pair; names the line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"pairs.path={path}: there is no such file. Make one with stage=pairs.")
    pairs = []
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")  # a prompt may hold other line ends of Unicode
    except UnicodeDecodeError:
        raise UserError(f"pairs.path={path} is not UTF-8 text; save it as UTF-8.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pair = PromptPair(record["prompt"], record["refined"], record.get("source", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            pair = None
        if pair is None or not all(isinstance(text, str) and text.strip() for text in (pair.prompt, pair.refined)):
            raise UserError(f'{file}, line {number}: every line is {{"prompt": "...", "refined": "..."}}.')
        pairs.append(pair)
    if not pairs:
        raise UserError(f"pairs.path={path}: the file has no pairs.")
    return pairs


def write_pairs(path: Path, pairs: Iterable[PromptPair]) -> Path:
    """Write a file of pairs in one step."""
    records = ({"prompt": pair.prompt, "refined": pair.refined, "source": pair.source} for pair in pairs)
    return write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def digest_of(pairs: Iterable[PromptPair]) -> str:
    """SHA-256 of the pairs in their order, the first 16 hexadecimal digits."""
    digest = sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.prompt, pair.refined]).encode())
    return digest.hexdigest()[:16]
