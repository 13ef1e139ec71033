"""Videos through a dictionary of metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vidlab.errors import DataError, UserError
from vidlab.lab.evaluation.clips import RealClip, ScoredClip, pixels_of, real_batches
from vidlab.metrics.base import ReferenceKind, VideoMetric
from vidlab.metrics.collection import AtHand, select
from vidlab.metrics.features import SetDistance
from vidlab.metrics.results import MetricResult

BATCH = 8


@dataclass(frozen=True)
class Scores:
    """What came out.

    Args:
        results: by metric or dimension.
        not_measured: why a metric that was asked for has no value, by name.
    """

    results: Mapping[str, MetricResult] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)


def score(
    metrics: Mapping[str, VideoMetric],
    clips: Sequence[ScoredClip],
    real: Sequence[RealClip],
    advance: Callable[[float], None] = lambda _: None,
    originals: Sequence[ScoredClip] | None = None,
) -> Scores:
    """Every metric that can be measured on these videos, and why the others cannot.

    Args:
        metrics: by name; they are reset first.
        clips: videos of one size.
        real: reference clips; metrics that need them are left out, by name, when there are none.
        advance: told of every video that has been scored and every reference that has been read.
        originals: one for each video, which it is compared with; None for videos that reconstruct nothing.

    Raises:
        UserError: none of the metrics can be measured.
        DataError: a video is unreadable or malformed.
    """
    shape = clips[0].frames().shape[:3]
    captions, factors = (all(getattr(clip, name) for clip in clips) for name in ("caption", "factors"))
    reference: ReferenceKind = "paired" if originals is not None else "set" if real else "none"
    selection = select(metrics, AtHand(shape[0], reference, captions, factors, min(shape[1:])))
    usable = selection.metrics
    if not usable:
        told = "; ".join(f"{name}: {why}" for name, why in selection.left_out.items())
        raise UserError(f"none of the metrics can be measured: {told}.")
    for metric in usable.values():
        metric.reset()
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        videos = pixels_of(part)
        pairs = None if originals is None else pixels_of(originals[start : start + BATCH])
        for metric in usable.values():
            metric.update(
                videos,
                reference=pairs,
                captions=[clip.caption for clip in part],
                keys=[clip.key for clip in part],
                factors=[clip.factors for clip in part],
            )
        advance(len(part))
    distances = [metric for metric in usable.values() if isinstance(metric, SetDistance)]
    if distances:
        for keys, pixels in real_batches(real, (shape[0], shape[1], shape[2]), BATCH):
            for metric in distances:
                metric.add_reference(pixels, keys)
            advance(len(keys))
    return gathered(usable, selection.left_out)


def gathered(metrics: Mapping[str, VideoMetric], left_out: Mapping[str, str]) -> Scores:
    """The results of metrics that have seen all clips. One that too few clips came to does not cost the others theirs.

    Raises:
        UserError: no metric has a result.
    """
    results: dict[str, MetricResult] = {}
    refused = dict(left_out)
    for name, metric in metrics.items():
        try:
            results |= named_results(name, metric)
        except (DataError, UserError) as error:
            refused[name] = str(error)
    if not results:
        told = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise UserError(f"none of the metrics can be measured: {told}.")
    return Scores(results, refused)


def named_results(name: str, metric: VideoMetric) -> dict[str, MetricResult]:
    """The result of a metric, and those of its dimensions."""
    return {name: metric.result(), **{f"{name}/{part}": result for part, result in metric.dimensions().items()}}
