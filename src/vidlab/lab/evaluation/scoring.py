"""Scores videos with a dictionary of metrics, batch by batch."""

from collections.abc import Callable, Mapping, Sequence

from vidlab.errors import UserError
from vidlab.lab.evaluation.clips import RealClip, ScoredClip, pixels_of, real_batches
from vidlab.metrics.base import ReferenceKind, VideoMetric
from vidlab.metrics.collection import AtHand, Scores, gathered, select
from vidlab.metrics.sets.features import SetDistance

BATCH = 8


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
        raise UserError(f"none of the metrics can be measured: {_told(selection.left_out)}.")
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
    found = gathered(usable, selection.left_out)
    if not found.results:
        raise UserError(f"none of the metrics can be measured: {_told(found.not_measured)}.")
    return found


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())
