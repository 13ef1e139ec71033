"""Partitions: fixed lists of source videos, the unit of work that is done whole or not at all."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha1
from itertools import islice
from pathlib import Path

from vidlab.curation.cache_writer import whole_file
from vidlab.curation.engine.records import SourceVideo
from vidlab.errors import DataError

PLAN_NAME = "partitions.json"


@dataclass(frozen=True)
class Partition:
    """Source videos that are worked on together.

    Args:
        number: from 0.
        sources: in order of their names.
    """

    number: int
    sources: tuple[SourceVideo, ...]

    @cached_property
    def name(self) -> str:
        """It changes when anything of a source does, its captions too, but for the place of its file."""
        what = repr([replace(source, file="") for source in self.sources])
        return f"{self.number:05d}-{sha1(what.encode()).hexdigest()[:8]}"


def planned(root: Path, sources: Iterable[SourceVideo], size: int) -> list[Partition]:
    """The partitions of sources; those of an earlier run stay as they are, and new sources get new ones.

    Args:
        root: the folder of a curation, which holds the plan.
        sources: all of them.
        size: sources of a new partition.

    Raises:
        DataError: two sources have one name.
    """
    by_name: dict[str, SourceVideo] = {}
    for source in sources:
        if source.name in by_name:
            raise DataError(f"two videos are called {source.name}")
        by_name[source.name] = source
    before = _read(root / PLAN_NAME)
    placed = {name for names in before for name in names}
    new = sorted(by_name.keys() - placed)
    names = [*before, *_chunks(new, size)]
    if names != before:
        with whole_file(root / PLAN_NAME) as temporary:
            temporary.write_text(json.dumps(names, indent=0), "utf-8", "surrogateescape")
    return [partition for number, part in enumerate(names) if (partition := _partition(number, part, by_name)).sources]


def _partition(number: int, names: Sequence[str], by_name: Mapping[str, SourceVideo]) -> Partition:
    return Partition(number, tuple(by_name[name] for name in names if name in by_name))


def _read(path: Path) -> list[list[str]]:
    return json.loads(path.read_text("utf-8", "surrogateescape")) if path.is_file() else []


def _chunks(names: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while chunk := list(islice(rest, size)):
        yield chunk
