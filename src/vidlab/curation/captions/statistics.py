"""How long captions are, and how many there are of a clip."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vidlab.curation.captions.captioner import Caption

BINS = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300)
"""Lower ends of the bins of the histogram, in words; the last has no upper end."""


@dataclass(frozen=True)
class LengthStatistics:
    """Lengths of captions in words, which white space separates.

    Args:
        source: who wrote them.
        captions: how many.
        clips: that have any of this source.
        mean, median, low, high: of the words of a caption; low and high are the 5th and 95th percentile.
        shortest, longest: in words.
        histogram: captions per bin of ``BINS``.
        cleaned: captions of which a prefix was taken away.
        cut: captions that ended where the model had to stop.
    """

    source: str
    captions: int
    clips: int
    mean: float
    median: float
    low: float
    high: float
    shortest: int
    longest: int
    histogram: tuple[int, ...]
    cleaned: int
    cut: int


def length_statistics(described: Iterable[Sequence[Caption]]) -> list[LengthStatistics]:
    """The statistics of each source, in the order in which they first appear.

    Args:
        described: the captions of each clip.
    """
    by_source: dict[str, list[Caption]] = {}
    clips: dict[str, int] = {}
    for captions in described:
        for caption in captions:
            by_source.setdefault(caption.source, []).append(caption)
        for source in {caption.source for caption in captions}:
            clips[source] = clips.get(source, 0) + 1
    return [_statistics(source, captions, clips[source]) for source, captions in by_source.items()]


def _statistics(source: str, captions: Sequence[Caption], clips: int) -> LengthStatistics:
    words = np.array([len(caption.text.split()) for caption in captions])
    low, median, high = np.quantile(words, [0.05, 0.5, 0.95]).tolist()
    histogram, _ = np.histogram(words, [*BINS, np.iinfo(np.int64).max])
    return LengthStatistics(
        source=source,
        captions=len(captions),
        clips=clips,
        mean=float(words.mean()),
        median=median,
        low=low,
        high=high,
        shortest=int(words.min()),
        longest=int(words.max()),
        histogram=tuple(histogram.tolist()),
        cleaned=sum(bool(caption.written) for caption in captions),
        cut=sum(caption.cut for caption in captions),
    )


def table_of(statistics: Sequence[LengthStatistics]) -> str:
    """The statistics as a Markdown table."""
    lines = [
        "| source | captions | clips | words: mean | median | 5 % to 95 % | longest | prefix removed | cut off |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in statistics:
        source = one.source.replace("|", "\\|")
        lines.append(
            f"| {source} | {one.captions} | {one.clips} | {one.mean:.1f} | {one.median:g} "
            f"| {one.low:g} to {one.high:g} | {one.longest} | {one.cleaned} | {one.cut} |"
        )
    return "\n".join(lines)
