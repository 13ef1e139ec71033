"""VBench arithmetic: read the result files of VBench itself and combine dimensions into published scores.

    python -m vidlab.metrics.vbench.scores results.json --preset vbench_t2v

VBench is not needed for this, only the ``*_eval_results.json`` it writes: an object that maps a dimension to
``[score, [{"video_path": ..., "video_results": ...}, ...]]``. Several files are read as one.

VBench writes dimension scores in [0, 1], and the results of single videos on the same scale with two exceptions:
imaging quality is on MUSIQ's scale of 0 to 100 per video, and dynamic degree is true or false. Both are brought
to [0, 1] here. Versions that left the imaging quality's mean at 0 to 100 are read too.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.command_line import exit_code
from vidlab.errors import DataError, UserError
from vidlab.metrics.vbench.presets import DIMENSIONS, PRESETS, Group, Preset

PERCENT_PER_VIDEO = frozenset({"imaging_quality"})


@dataclass(frozen=True)
class DimensionResult:
    """A dimension's score in [0, 1] and those of its videos, by path, where the file has them."""

    score: float
    videos: Mapping[str, float]


@dataclass(frozen=True)
class NormalizedDimension:
    """One dimension of an aggregate: the score as measured, mapped to its published range, and its weight."""

    name: str
    group: str
    score: float
    normalized: float
    weight: float


@dataclass(frozen=True)
class Aggregate:
    """The headline scores of one model, all nominally in [0, 1].

    Args:
        preset: how they were computed.
        total: the weighted mean of the groups.
        groups: the score of each group by name.
        dimensions: what went in, in the preset's order.
        unused: dimensions that were given and the preset has no use for.
    """

    preset: Preset
    total: float
    groups: Mapping[str, float]
    dimensions: tuple[NormalizedDimension, ...]
    unused: tuple[str, ...]


def aggregate(scores: Mapping[str, float], preset: str) -> Aggregate:
    """Combine dimension scores in [0, 1] as a preset says.

    Raises:
        UserError: for an unknown preset or dimension, a missing dimension (it never counts as zero), or a score
            outside [0, 1].
    """
    if preset not in PRESETS:
        raise UserError(f"preset={preset}: choose one of {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    _check_names(scores, chosen)
    for name, score in scores.items():
        if not 0 <= score <= 1:
            raise UserError(f"{name}={score}: a dimension's score lies in [0, 1]; divide percentages by 100.")
    dimensions = tuple(
        NormalizedDimension(name, group.name, scores[name], _normalize(chosen, name, scores[name]), weight)
        for group in chosen.groups
        for name, weight in group.weights.items()
    )
    groups = {group.name: _mean([d for d in dimensions if d.group == group.name]) for group in chosen.groups}
    total = sum(group.weight * groups[group.name] for group in chosen.groups)
    total /= sum(group.weight for group in chosen.groups)
    unused = tuple(name for name in scores if name not in chosen.dimensions)
    return Aggregate(chosen, total, groups, dimensions, unused)


def read_results(files: Iterable[str | Path]) -> dict[str, DimensionResult]:
    """Read VBench's result files as one.

    Raises:
        UserError: for a missing file.
        DataError: for a file that is not such a result, or a dimension that is in two files.
    """
    found: dict[str, DimensionResult] = {}
    for file in map(Path, files):
        for key, value in _object(file).items():
            name = key.strip().lower().replace(" ", "_")
            if name in found:
                raise DataError(f"{file}: {name} is in the results twice; give each dimension once.")
            found[name] = _dimension(file, name, value)
    return found


def report(result: Aggregate) -> str:
    """The scores as percentages, with the formula and every normalized dimension."""
    lines = [f"{result.preset.name}: {result.preset.source}", ""]
    lines.append(f"{'dimension':<24}{'score':>8}  {'range':>15}  {'normalized':>10}  weight")
    for item in result.dimensions:
        span = result.preset.ranges.get(item.name)
        limits = f"{100 * span.least:.2f}-{100 * span.most:.2f}" if span else "as it is"
        lines.append(
            f"{item.name:<24}{100 * item.score:>8.2f}  {limits:>15}  {100 * item.normalized:>10.2f}  {item.weight:g}"
        )
    lines.append("")
    lines += [f"{name:<10}{100 * value:>8.2f}" for name, value in result.groups.items()]
    lines.append(f"{'total':<10}{100 * result.total:>8.2f}  = {_formula(result.preset.groups)}")
    if result.unused:
        lines.append(f"not used by this preset: {', '.join(result.unused)}")
    return "\n".join(lines)


def _check_names(scores: Mapping[str, float], preset: Preset) -> None:
    unknown = [name for name in scores if name not in DIMENSIONS]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: not a VBench dimension; known are {', '.join(DIMENSIONS)}.")
    missing = [name for name in preset.dimensions if name not in scores]
    if missing:
        raise UserError(
            f"{preset.name} needs {', '.join(missing)}, which the results lack. Evaluate them with VBench and give "
            "their files too; a missing dimension is not counted as zero."
        )


def _normalize(preset: Preset, name: str, score: float) -> float:
    span = preset.ranges.get(name)
    return score if span is None else (score - span.least) / (span.most - span.least)


def _mean(dimensions: Sequence[NormalizedDimension]) -> float:
    return sum(d.weight * d.normalized for d in dimensions) / sum(d.weight for d in dimensions)


def _formula(groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return f"mean of {len(groups[0].weights)} dimensions"
    parts = [group.name if group.weight == 1 else f"{group.weight:g} x {group.name}" for group in groups]
    return f"({' + '.join(parts)}) / {sum(group.weight for group in groups):g}"


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the *_eval_results.json that VBench wrote.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise DataError(f"{file}: not a JSON file ({error}).") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{file}: not a VBench result; expected an object of dimension: [score, videos].")
    return content


def _dimension(file: Path, name: str, value: Any) -> DimensionResult:
    score, videos = value if isinstance(value, list) and len(value) == 2 else (value, [])
    if not _is_number(score) or not isinstance(videos, list):
        raise DataError(f"{file}: {name} is not [score, videos] with a number as score.")
    percent = name in PERCENT_PER_VIDEO and score > 1
    per_video: dict[str, float] = {}
    for video in videos:
        if not isinstance(video, dict) or not _is_number(video.get("video_results")):
            raise DataError(f"{file}: an entry of {name} lacks the number video_results: {str(video)[:80]}")
        scale = 100 if name in PERCENT_PER_VIDEO else 1
        per_video[str(video.get("video_path", len(per_video)))] = float(video["video_results"]) / scale
    return DimensionResult(float(score) / (100 if percent else 1), per_video)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


@exit_code
def main() -> None:
    """Print the headline scores of VBench result files."""
    import argparse

    parser = argparse.ArgumentParser(prog="vidlab vbench", description=main.__doc__)
    parser.add_argument("results", nargs="+", help="the *_eval_results.json files that VBench wrote")
    parser.add_argument("--preset", default="vbench_t2v", help=f"one of {', '.join(PRESETS)}")
    arguments = parser.parse_args()
    found = read_results(arguments.results)
    print(report(aggregate({name: item.score for name, item in found.items()}, arguments.preset)))
