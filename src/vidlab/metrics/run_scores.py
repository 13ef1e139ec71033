"""What an evaluation during training leaves in a run's folder: the score of every clip, and names for its videos."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from hashlib import blake2b
from pathlib import Path

from vidlab.errors import DataError
from vidlab.files import cells, open_table
from vidlab.metrics.base import key_number
from vidlab.metrics.results import MetricResult

SCORES, VIDEOS = "scores.csv", "videos"
LONGEST_NAME = 100


@dataclass(frozen=True)
class ClipScore:
    """One row of ``scores.csv``.

    Args:
        step: optimizer steps of the weights.
        series: what the video depends on besides them, by ``Series.name``.
        key: of the held-out clip whose caption was given; its noise is keyed by it, so it is the same in every run.
        caption: what the video should show.
        metric: what was measured.
        score: of this clip.
    """

    step: int
    series: str
    key: str
    caption: str
    metric: str
    score: float


COLUMNS = tuple(field.name for field in fields(ClipScore))


def clip_scores(
    step: int, series: str, captions: Mapping[str, str], results: Mapping[str, MetricResult]
) -> list[ClipScore]:
    """One row for each clip and metric that scores single clips.

    Args:
        step, series: as in ``ClipScore``.
        captions: by key, of all clips.
        results: by metric.
    """
    keys = {key_number(key): key for key in captions}
    return [
        ClipScore(step, series, keys[number], captions[keys[number]], metric, score)
        for metric, result in results.items()
        for number, score in zip(result.keys, result.scores, strict=True)
    ]


def add_scores(path: Path, rows: Sequence[ClipScore]) -> Path:
    """Add the rows of one step; those of this and later steps, of a training that was interrupted, are replaced.

    Keys and captions that a spreadsheet would compute have an apostrophe in front, as everywhere in vidlab's tables.
    """
    step = min((row.step for row in rows), default=0)
    earlier = [row for row in read_scores(path) if row.step < step] if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(cells(astuple(row)) for row in (*earlier, *rows))
    return path


def read_scores(path: Path) -> list[ClipScore]:
    """The rows of a ``scores.csv``.

    Raises:
        DataError: it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                ClipScore(
                    int(row["step"]), row["series"], row["key"], row["caption"], row["metric"], float(row["score"])
                )
                for row in csv.DictReader(file)
            ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); delete it to go on.") from error


def video_name(key: str) -> str:
    """The file name of a clip's video: its key where that is a plain name, else what is left of it and a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.")[:LONGEST_NAME]
    return f"{key if plain == key else f'{plain}-{blake2b(key.encode(), digest_size=4).hexdigest()}'}.mp4"
