"""Panda-70M (Chen et al. 2024) as it is downloaded, or with a list of its own."""

import ast
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.data.catalogue import Catalogue, Entry
from vidlab.errors import DataError, UserError

LIST_COLUMNS = ("timestamp", "caption", "matching_score", "desirable_filtering", "shot_boundary_detection")
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


def read_panda_csv(path: Path) -> Iterator[PandaClip]:
    """Clips of a Panda-70M table: one row per source video, its lists written as Python literals.

    Columns ``videoID, url, timestamp, caption, matching_score`` and, in later releases, ``desirable_filtering`` and
    ``shot_boundary_detection``; times are ``H:MM:SS.mmm``. Lists are read as literals: no code in a cell is run.

    Raises:
        DataError: a missing column, a cell that is no list, or lists of different lengths; names the line.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"videoID", "timestamp", "caption"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} is no Panda-70M table: it lacks the columns {sorted(missing)}")
            for row in reader:
                yield from _clips(row, f"{path}, line {reader.line_num}")
    finally:
        csv.field_size_limit(limit)


def _clips(row: Mapping[str, str], place: str) -> Iterator[PandaClip]:
    times, captions = (_literal(row[name], f"{place}, {name}") for name in ("timestamp", "caption"))
    scores = _literal(row["matching_score"], f"{place}, matching_score") if row.get("matching_score") else []
    scores = scores or [None] * len(captions)
    if not len(times) == len(captions) == len(scores):
        raise DataError(f"{place}: {len(times)} timestamps, {len(captions)} captions, {len(scores)} scores")
    for number, (span, caption, score) in enumerate(zip(times, captions, scores, strict=True)):
        start, end = (_seconds(time, place) for time in span)
        text, matching = " ".join(str(caption).split()), None if score is None else float(score)
        yield PandaClip(row["videoID"], number, start, end, text, matching)


def _literal(cell: str, place: str) -> list[Any]:
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{place}: {cell[:60]!r} is not a Python list ({error})") from None
    if not isinstance(value, list):
        raise DataError(f"{place}: {cell[:60]!r} is not a Python list")
    return value


def _seconds(time: str, place: str) -> float:
    try:
        hours, minutes, seconds = str(time).split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        raise DataError(f"{place}: {time!r} is not a time H:MM:SS.mmm") from None


@dataclass(frozen=True)
class Panda(Catalogue):
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

    def advice(self) -> str:
        """Where it comes from."""
        return (
            "Download the clips with the tool of github.com/snap-research/Panda-70M; it writes "
            "00000/0000000_00000.mp4 with .txt and .json beside. data.source.annotation=<csv> chooses among them."
        )

    def annotated_by(self, folder: Path) -> list[Path]:
        """The table, and the names of the clips through their folders."""
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        return [*folders, *([self.find(folder, [])] if self.annotation else [])]

    def entries(self, folder: Path) -> Iterable[Entry]:
        """Downloaded clips, those of the table where there is one."""
        wanted = self._wanted(folder)
        found = 0
        for video in sorted(folder.glob("*/*.mp4")):
            parts = CLIP.match(video.stem)
            source = f"{video.parent.name}/{parts['video'] if parts else video.stem}"
            file = video.relative_to(folder).as_posix()
            if wanted is None:
                beside = video.with_suffix(".txt")
                caption = " ".join(beside.read_text(encoding="utf-8").split()) if beside.is_file() else ""
                yield Entry(file, (caption,), source)
                continue
            clip = wanted.get((_video_id(video), int(parts["clip"]) if parts else 0))
            if clip is not None:
                found += 1
                scores = {} if clip.score is None else {"matching": clip.score}
                yield Entry(file, (clip.caption,), clip.video_id, scores=scores)
        if wanted and not found:
            raise UserError(
                f"data.source.annotation={self.annotation} names none of the clips in {folder}. {self.advice()}"
            )

    def _wanted(self, folder: Path) -> dict[tuple[str, int], PandaClip] | None:
        if not self.annotation:
            return None
        clips = read_panda_csv(self.find(folder, []))
        return {(clip.video_id, clip.number): clip for clip in clips if self._matches(clip)}

    def _matches(self, clip: PandaClip) -> bool:
        return clip.score is None or clip.score >= self.min_score


def _video_id(video: Path) -> str:
    beside = video.with_suffix(".json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except ValueError as error:
        raise DataError(f"{beside} is not JSON ({error})") from None
    return str(record.get("videoID") or str(record.get("url", "")).rpartition("v=")[2])
