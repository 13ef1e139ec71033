"""Gathers, in one pass over all clips, what the report shows: numbers for its plots, a few clips per reason."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from vidlab.curation.engine.engines import ENDED
from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.store import table_clips

SHOWN = 6
"""Clips that are shown per reason."""
KEPT = ("", "")


@dataclass
class Samples:
    """What the report shows.

    Attributes:
        values: numbers by quantity, of all clips that have them and of those kept.
        sizes: clips kept by (width, height).
        examples: a few clips by (step, reason), ``KEPT`` those kept: the ones whose ids come first, which is a draw
            that does not change.
        deadly: sources that ended their readers, which are not read for a picture.
    """

    values: dict[str, tuple[list[float], list[float]]] = field(default_factory=lambda: defaultdict(lambda: ([], [])))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[Clip]] = field(default_factory=dict)
    deadly: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tables: Iterable[Any]) -> "Samples":
        """Of the tables of a curation."""
        samples = cls()
        for table in tables:
            samples.add(table_clips(table))
        return samples

    def add(self, clips: Sequence[Clip]) -> None:
        """Take in the clips of a partition."""
        by_reason: dict[tuple[str, str], list[Clip]] = defaultdict(list)
        for clip in clips:
            if clip.reason.startswith(ENDED):
                self.deadly.add(clip.source)
            by_reason[clip.rejected_by, clip.reason].append(clip)
            for quantity, value in quantities(clip).items():
                everything, kept = self.values[quantity]
                everything.append(value)
                if clip.is_in:
                    kept.append(value)
            if clip.is_in:
                self.sizes[clip.area.width, clip.area.height] += 1
        for reason, found in by_reason.items():
            self.examples[reason] = nsmallest(SHOWN, [*self.examples.get(reason, ()), *found], key=lambda c: c.id)


def quantities(clip: Clip) -> Mapping[str, float]:
    """The numbers of a clip whose distributions are shown."""
    found: dict[str, float] = {}
    if clip.fps:
        found = {"duration (s)": clip.seconds, "short side (pixels)": min(clip.area.height, clip.area.width)}
    found |= dict(clip.scores)
    if clip.captions:
        found["caption length (words)"] = float(len(clip.captions[0].split()))
    return found
