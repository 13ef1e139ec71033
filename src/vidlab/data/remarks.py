"""Remarks made once on all clips of a data set: how they are read, where that may not be what was expected."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vidlab.data.names import shown

# Where an index keeps them: in its metadata, and not in its hash, since they change no clip.
REMARKS = "remarks"


class Remarks:
    """Remarks by kind: of how many clips, and which was the first.

    A remark goes on from "these clips are": ``interlaced, read with both fields in one frame``.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, int]] = {}

    def add(self, key: str, remarks: Iterable[str]) -> None:
        """Count the remarks on one clip."""
        for remark in remarks:
            first, count = self._kinds.get(remark, (key, 0))
            self._kinds[remark] = (first, count + 1)

    def metadata(self) -> dict[str, Any]:
        """For the metadata of an index; empty where there is none."""
        found = {shown(remark): {"first": shown(first), "clips": n} for remark, (first, n) in self._kinds.items()}
        return {REMARKS: found} if found else {}


def sentences(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The remarks in an index's metadata, a line each; whoever wrote it may have put anything there."""
    found = metadata.get(REMARKS)
    for remark, of in (found if isinstance(found, dict) else {}).items():
        clips = of.get("clips") if isinstance(of, dict) else None
        if isinstance(clips, int):
            yield f"{clips} {'clip is' if clips == 1 else 'clips are'} {shown(remark)} (first {shown(of.get('first'))})"
