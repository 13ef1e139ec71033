"""VideoPhy's scores from the result files of its own evaluator, VideoCon-Physics, which is not needed for this.

    vidlab videophy videocon_physics_sa_testing.csv videocon_physics_pc_testing.csv

``entailment_inference.py`` of VideoPhy (Bansal et al. 2024, arXiv:2406.03520) writes one row for each video, without a
header: its path, the question that was asked, and the probability of "Yes" in [0, 1]. One file asks whether the video
entails its caption (semantic adherence, SA), the other whether it follows the physical laws (physical commonsense, PC).
A video adheres where the probability is at least 0.5. The automatic leaderboard, and Table 19 of STIV, print the
percentages of SA and of PC and their mean; the human one also the percentage that has both.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidlab.command_line import exit_code
from vidlab.errors import DataError, UserError
from vidlab.metrics.intervals import Interval, bootstrap_mean

# What is asked in the file of each score.
QUESTIONS = {"SA": "entail the description", "PC": "follow the physical laws"}
THRESHOLD = 0.5
LONGEST = 1 << 20  # characters in a cell


@dataclass(frozen=True)
class Share:
    """The share of videos, in [0, 1], with its 95 % interval over videos; None with fewer than 2."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class VideoPhyScores:
    """The scores of one model.

    Args:
        semantic: SA = 1.
        physical: PC = 1.
        both: SA = 1 and PC = 1.
        mean: of SA and PC.
        videos: how many were judged.
    """

    semantic: Share
    physical: Share
    both: Share
    mean: float
    videos: int


def videophy_scores(
    semantic: Mapping[str, float], physical: Mapping[str, float], threshold: float = THRESHOLD
) -> VideoPhyScores:
    """Combine the probabilities of "Yes" of the same videos.

    Args:
        semantic, physical: by video, in [0, 1].
        threshold: from which on a video adheres.

    Raises:
        UserError: the videos of both differ; none counts as failed because it was not judged.
    """
    missing = sorted(semantic.keys() ^ physical.keys())
    if missing or not semantic:
        raise UserError(
            f"SA is given of {len(semantic)} videos and PC of {len(physical)}, and {len(missing)} have only one of them"
            f"{', first ' + missing[0] if missing else ''}: both must be of the same videos."
        )
    adheres = [semantic[video] >= threshold for video in semantic]
    obeys = [physical[video] >= threshold for video in semantic]
    both = [one and other for one, other in zip(adheres, obeys, strict=True)]
    sa, pc = _share(adheres), _share(obeys)
    return VideoPhyScores(sa, pc, _share(both), (sa.value + pc.value) / 2, len(semantic))


def read_files(files: Iterable[str | Path]) -> dict[str, dict[str, float]]:
    """The probabilities by score ("SA", "PC") and by video; a file's question says which score it holds.

    Raises:
        UserError: a file is missing, or a score is given twice or not at all.
        DataError: a file is no such result, or has a video twice.
    """
    found: dict[str, dict[str, float]] = {}
    for file in map(Path, files):
        score, rows = _read(file)
        if score in found:
            raise UserError(f"{file}: {score} is given twice; give one file of SA and one of PC.")
        found[score] = rows
    absent = [score for score in QUESTIONS if score not in found]
    if absent:
        raise UserError(f"{', '.join(absent)} is missing: VideoPhy needs the file of SA and that of PC.")
    return found


def report(scores: VideoPhyScores) -> str:
    """The scores as percentages."""
    rows = (("SA = 1", scores.semantic), ("PC = 1", scores.physical), ("SA = 1, PC = 1", scores.both))
    lines = [f"videophy: VideoPhy (Bansal et al., 2024), VideoCon-Physics, {scores.videos} videos", ""]
    for name, share in rows:
        told = ""
        if share.interval is not None:
            told = f"   [{100 * share.interval.low:.1f}, {100 * share.interval.high:.1f}], 95 %"
        lines.append(f"{name:<16}{100 * share.value:>6.1f}{told}")
    return "\n".join([*lines, f"{'mean of SA, PC':<16}{100 * scores.mean:>6.1f}"])


def _share(adheres: list[bool]) -> Share:
    numbers = [float(one) for one in adheres]
    return Share(sum(numbers) / len(numbers), bootstrap_mean(numbers).interval)


def _read(file: Path) -> tuple[str, dict[str, float]]:
    csv.field_size_limit(LONGEST)
    try:
        with file.open(encoding="utf-8", newline="") as text:
            rows = [row for row in csv.reader(text) if row]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the csv that entailment_inference.py of VideoPhy wrote.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as csv ({error}).") from error
    rows = rows[1:] if rows and len(rows[0]) == 3 and _number(rows[0][2]) is None else rows  # a header someone added
    whole = all(len(row) == 3 for row in rows)
    kinds = {score for row in rows for score, asked in QUESTIONS.items() if whole and asked in row[1]}
    if len(kinds) != 1:
        raise DataError(
            f"{file}: not a result of VideoPhy; expected rows of path, question, probability, of one question: "
            f"{' or '.join(QUESTIONS.values())}."
        )
    found: dict[str, float] = {}
    for path, _, value in rows:
        score = _number(value)
        if score is None or not 0 <= score <= 1:
            raise DataError(f"{file}: {path[:80]} has the score {value[:20]}, which is no number in [0, 1].")
        if path in found:
            raise DataError(f"{file}: {path[:80]} is there twice; the evaluator appends to a file that exists.")
        found[path] = score
    return kinds.pop(), found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@exit_code
def main() -> None:
    """Print VideoPhy's scores from the two files that its evaluator wrote."""
    import argparse

    parser = argparse.ArgumentParser(prog="vidlab videophy", description=main.__doc__)
    parser.add_argument("results", nargs=2, help="the csv of semantic adherence and that of physical commonsense")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="from which probability on a video adheres")
    arguments = parser.parse_args()
    found = read_files(arguments.results)
    print(report(videophy_scores(found["SA"], found["PC"], arguments.threshold)))
