"""The scores of an evaluation as tables, CSV rows and contact sheets."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidlab.data.video.contact_sheets import contact_sheet, write_png
from vidlab.files import cells, named_cells, open_table
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.evaluation.clips import ScoredClip
from vidlab.lab.evaluation.scoring import Scores
from vidlab.lab.runs.configurations import RunSettings
from vidlab.metrics.base import key_number
from vidlab.metrics.results import MetricResult
from vidlab.metrics.series import Series

COLUMNS = (
    *("subject", "metric", "value", "low", "high", "interval", "better", "N", "reference_N", "frames", "stride"),
    *("resolution", "resize", "settings", "floor", "notes"),
)


@dataclass(frozen=True)
class Evaluated:
    """The scores of one checkpoint or folder of videos.

    Args:
        name: what tables call it.
        source: the checkpoint or folder.
        clips: its videos.
        scores: what was measured.
        mlflow_run_id: where the scores belong; None for folders.
        step: optimizer steps of the checkpoint.
        series: what the videos depend on besides the weights; None where nothing was generated.
        settings: what made the run; None where nobody recorded it.
    """

    name: str
    source: str
    clips: Sequence[ScoredClip]
    scores: Scores
    mlflow_run_id: str | None = None
    step: int = 0
    series: Series | None = None
    settings: RunSettings | None = None


def distinct(subjects: Sequence[Evaluated]) -> list[Evaluated]:
    """Number subjects of one name."""
    names = [subject.name for subject in subjects]
    return [
        subject if names.count(subject.name) == 1 else replace(subject, name=f"{subject.name} ({place + 1})")
        for place, subject in enumerate(subjects)
    ]


def write_csv(path: Path, subjects: Sequence[Evaluated]) -> Path:
    """Every value with everything it depends on, one row each."""
    with open_table(path) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for subject in subjects:
            for name, result in subject.scores.results.items():
                writer.writerow(named_cells(_row(subject.name, name, result)))
    return path


def _row(subject: str, name: str, result: MetricResult) -> dict[str, object]:
    interval, floor = result.interval, result.floor
    direction = {True: "higher", False: "lower", None: ""}[result.higher_is_better]
    return {
        "subject": subject,
        "metric": name,
        "value": repr(result.value),
        "low": "" if interval is None else repr(interval.low),
        "high": "" if interval is None else repr(interval.high),
        "interval": "" if interval is None else f"{interval.level:g}, {interval.method}",
        "better": direction,
        "N": result.clips,
        "reference_N": "" if result.reference_clips is None else result.reference_clips,
        "frames": result.frames,
        "stride": result.stride,
        "resolution": f"{result.resolution[0]} x {result.resolution[1]}",
        "resize": result.resize,
        "settings": "; ".join(f"{key} {value}" for key, value in result.settings.items()),
        "floor": "" if floor is None else f"{floor.value:.6g} at N {floor.clips}",
        "notes": "; ".join(result.notes),
    }


def write_clip_csv(path: Path, subjects: Sequence[Evaluated]) -> Path:
    """The score of every single video in every metric that has them."""
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "key", "caption", "file", "metric", "score"))
        for subject in subjects:
            by_number = {key_number(clip.key): clip for clip in subject.clips}
            for name, result in subject.scores.results.items():
                for number, value in zip(result.keys, result.scores, strict=True):
                    clip = by_number[number]
                    writer.writerow(cells((subject.name, clip.key, clip.caption, str(clip.path), name, repr(value))))
    return path


def table(subject: Evaluated) -> str:
    """The scores of one subject as Markdown."""
    lines = ["| metric | value | 95 % interval | better | N | frames | resolution | resize |", "|---" * 8 + "|"]
    notes = []
    for name, result in subject.scores.results.items():
        direction = {True: "higher", False: "lower", None: "-"}[result.higher_is_better]
        clips = f"{result.clips}" + (f" / {result.reference_clips}" if result.reference_clips else "")
        size = f"{result.resolution[0]} x {result.resolution[1]}"
        lines.append(
            f"| {name} | {result.value:.4g} | {interval_text(result)} | {direction} | {clips} | "
            f"{result.frames} | {size} | {result.resize} |"
        )
        floor = result.floor
        if floor is not None:
            notes.append(f"{name}: two parts of the reference at N {floor.clips} are {floor.value:.4g} apart")
        notes += [f"{name}: {note}" for note in result.notes]
    notes += [f"{name}: not measured, {why}" for name, why in subject.scores.not_measured.items()]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in notes)]).rstrip()


def interval_text(result: MetricResult) -> str:
    """``low to high``, or a dash."""
    return "-" if result.interval is None else f"{result.interval.low:.4g} to {result.interval.high:.4g}"


def write_sheets(folder: Path, subject: Evaluated) -> Mapping[str, Path]:
    """For each metric with scores of single videos: the best, the median and the worst, as a contact sheet."""

    by_number = {key_number(clip.key): clip for clip in subject.clips}
    written = {}
    for name, result in subject.scores.results.items():
        if not result.scores or result.higher_is_better is None or name.startswith(("loss_at_t", "x0_mse")):
            continue
        order = np.argsort(result.scores, kind="stable")
        ranked = order[::-1] if result.higher_is_better else order
        places = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        chosen = [(label, by_number[result.keys[place]], result.scores[place]) for label, place in places.items()]
        videos = np.stack([clip.frames() for _, clip, _ in chosen])
        labels = [f"{name}, {label} {value:.3g}: {clip.caption}" for label, clip, value in chosen]
        folder.mkdir(parents=True, exist_ok=True)
        written[name] = folder / f"{name.replace('/', '-')}.png"
        write_png(written[name], contact_sheet(videos, labels))
    return written
