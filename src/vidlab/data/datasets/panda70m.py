"""Panda-70M (Chen et al. 2024) as it is downloaded, or with a list of its own."""

import ast
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from vidlab.data.datasets.annotated import AnnotatedVideos
from vidlab.data.datasets.annotation import Annotation
from vidlab.data.names import reason_of, shown
from vidlab.data.tables.captions import captions_beside, captions_of
from vidlab.data.tables.csv_table import read_table
from vidlab.data.tables.table_rows import BadItem, make_each
from vidlab.errors import CorruptClipError, UserError

log = logging.getLogger(__name__)

CLIP = re.compile(r"(?P<video>.+)_(?P<clip>\d+)$")


@dataclass(frozen=True)
class PandaClip:
    """One clip of a row of Panda's table; ``score`` is that of caption and clip, None where the table has none."""

    video_id: str
    number: int
    start: float
    end: float
    caption: str
    score: float | None


def read_panda_csv(path: Path) -> Iterator[PandaClip | BadItem]:
    """Clips of a Panda-70M table: one row per source video, its lists written as Python literals.

    Columns ``videoID, url, timestamp, caption, matching_score`` and, in later releases, ``desirable_filtering`` and
    ``shot_boundary_detection``; times are ``H:MM:SS.mmm``. Lists are read as literals: no code in a cell is run. A row
    with a cell that is no list, or with lists of different lengths, is bad as a whole.

    Raises:
        DataError: a missing column, or a file that cannot be read.
    """
    for made in make_each(read_table(path, ("videoID", "timestamp", "caption")), _clips):
        if isinstance(made, BadItem):
            yield made
        else:
            yield from made


def _clips(row: Mapping[str, str]) -> list[PandaClip | BadItem]:
    times, captions = (_literal(row[name], name) for name in ("timestamp", "caption"))
    scores = _literal(row["matching_score"], "matching_score") if row.get("matching_score") else []
    scores = scores or [None] * len(captions)
    if not len(times) == len(captions) == len(scores):
        raise CorruptClipError(f"has {len(times)} timestamps, {len(captions)} captions and {len(scores)} scores")
    clips: list[PandaClip | BadItem] = []
    for number, (span, caption, score) in enumerate(zip(times, captions, scores, strict=True)):
        try:
            clips.append(_clip(row["videoID"], number, span, caption, score))
        except Exception as error:  # a value of another type than its neighbors is that clip's failure
            clips.append(BadItem(f"{row['videoID']}, clip {number}", reason_of(error)))
    return clips


def _clip(video: str, number: int, span: Any, caption: Any, score: Any) -> PandaClip:
    start, end = (_seconds(time) for time in span)
    matching = None if score is None or not math.isfinite(float(score)) else float(score)
    return PandaClip(video, number, start, end, " ".join(captions_of(caption)), matching)


def _literal(cell: str, name: str) -> list[Any]:
    try:
        value, why = ast.literal_eval(cell), ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        value, why = None, f" ({reason_of(error)})"
    if not isinstance(value, list):
        raise CorruptClipError(f"has a {name} that is not a Python list: {shown(cell[:60])}{why}")
    return value


def _seconds(time: str) -> float:
    try:
        hours, minutes, seconds = str(time).split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        raise CorruptClipError(f"has the time {shown(time)[:60]}, which is not H:MM:SS.mmm") from None


@dataclass(frozen=True)
class Panda(AnnotatedVideos):
    """Clips downloaded by Panda-70M's own tool, ``00000/0000000_00000.mp4`` with ``.txt`` and ``.json`` beside.

    Without ``annotation`` every downloaded clip counts, with the caption beside it. With one of Panda's tables only
    the clips it names count, found by the ``videoID`` in their ``.json`` and the number after the last ``_`` of their
    name, and captions and scores are the table's. So ``data=panda10m`` is Snap's list of 10,473,922 clips from
    3,755,240 videos (``panda70m_training_10m.csv``) when that is what was downloaded or is given; the 10M list STIV
    filtered was never published, and another list can be given in the same format.

    Args:
        min_score: least matching score of caption and clip; Snap's 10M list was cut at 0.43.
    """

    name: str = "panda10m"
    min_score: float = 0.0

    @override
    def advice(self) -> str:
        return (
            "Download the clips with the tool of github.com/snap-research/Panda-70M; it writes "
            "00000/0000000_00000.mp4 with .txt and .json beside. data.source.annotation=<csv> chooses among them."
        )

    @override
    def annotated_by(self, folder: Path) -> list[Path]:
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        return [*folders, *([self.find(folder, [])] if self.annotation else [])]

    @override
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        wanted: dict[tuple[str, int], PandaClip] | None = None
        if self.annotation:
            wanted = {}
            for clip in read_panda_csv(self.find(folder, [])):
                if isinstance(clip, BadItem):
                    yield clip
                elif self._matches(clip):
                    wanted.setdefault((clip.video_id, clip.number), clip)
        found = others = 0
        for video in sorted(folder.glob("*/*.mp4")):
            if video.name.startswith("."):
                continue
            try:
                entry = self._entry(video, folder, wanted)
            except Exception as error:  # what a file beside a clip holds is that clip's failure
                name = video.relative_to(folder).as_posix()
                yield BadItem(name, reason_of(error))
            else:
                found, others = found + (entry is not None), others + (entry is None)
                if entry is not None:
                    yield entry
        if others:
            log.warning(
                "data=%s: %d clips in %s are left out: %s does not name them, or with a score below %g",
                self.name, others, folder, self.annotation, self.min_score,
            )  # fmt: skip
        if wanted and not found:
            raise UserError(
                f"data.source.annotation={self.annotation} names none of the clips in {folder}. {self.advice()}"
            )

    def _entry(
        self, video: Path, folder: Path, wanted: Mapping[tuple[str, int], PandaClip] | None
    ) -> Annotation | None:
        """A downloaded clip; None where the table does not name it."""
        parts = CLIP.match(video.stem)
        file = video.relative_to(folder).as_posix()
        if wanted is None:
            source = f"{video.parent.name}/{parts['video'] if parts else video.stem}"
            beside = video.with_suffix(".txt")
            return Annotation(file, (" ".join(captions_beside(beside)) if beside.is_file() else "",), source)
        clip = wanted.get((_video_id(video), int(parts["clip"]) if parts else 0))
        if clip is None:
            return None
        return Annotation(
            file, (clip.caption,), clip.video_id, scores={} if clip.score is None else {"matching": clip.score}
        )

    def _matches(self, clip: PandaClip) -> bool:
        return clip.score is None or clip.score >= self.min_score


def _video_id(video: Path) -> str:
    beside = video.with_suffix(".json")
    try:
        record = json.loads(beside.read_bytes()) if beside.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise CorruptClipError(f"its .json is not JSON ({reason_of(error)})") from None
    if not isinstance(record, dict):
        raise CorruptClipError(f"its .json is a {type(record).__name__}, not an object")
    found, url = record.get("videoID"), record.get("url")
    found = found or (url.rpartition("v=")[2] if isinstance(url, str) else None)
    if not isinstance(found, str) or not found:
        raise CorruptClipError("no .json beside it says which video of the table it is from (videoID or url)")
    return found
