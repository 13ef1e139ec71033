"""Which metrics can be measured on the clips at hand, and measuring them together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vidlab.errors import DataError, UserError
from vidlab.metrics.base import ReferenceKind, VideoMetric
from vidlab.metrics.results import MetricResult
from vidlab.metrics.sets.features import share_extractors

_SERVES: dict[str, tuple[str, ...]] = {"none": ("none",), "set": ("none", "set"), "paired": ("none", "set", "paired")}


@dataclass(frozen=True)
class Selection:
    """Metrics that can be measured, and why the others cannot, both by name."""

    metrics: dict[str, VideoMetric]
    left_out: dict[str, str]


@dataclass(frozen=True)
class AtHand:
    """What there is to measure with.

    Args:
        frames: of every clip.
        reference: what the clips can be compared with: nothing, a set of real clips, or one original for each clip.
        captions: whether all clips have captions.
        factors: whether the factors of all captions are known.
        side: the shorter side of every clip in pixels; None where it is not known.
    """

    frames: int
    reference: ReferenceKind = "none"
    captions: bool = False
    factors: bool = False
    side: int | None = None


def select(metrics: Mapping[str, VideoMetric | None], at_hand: AtHand) -> Selection:
    """The metrics that what is at hand allows, with equal feature networks made one.

    Args:
        metrics: by name; None (a metric taken out on the command line) is passed over.
        at_hand: what there is to measure with.
    """
    chosen: dict[str, VideoMetric] = {}
    left_out: dict[str, str] = {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        obstacle = _obstacle(metric, at_hand)
        if obstacle is None:
            chosen[name] = metric
        else:
            left_out[name] = f"it needs {obstacle}"
    share_extractors(chosen)
    return Selection(chosen, left_out)


def _obstacle(metric: VideoMetric, at_hand: AtHand) -> str | None:
    needed = ((metric.frames or metric.minimum_frames) - 1) * metric.stride + 1
    if at_hand.frames < needed:
        return f"{needed} frames, and the clips have {at_hand.frames}"
    if at_hand.side is not None and at_hand.side < metric.least_side:
        return f"{metric.least_side} pixels a side, and the clips have {at_hand.side} (its setting size enlarges them)"
    if metric.reference_kind not in _SERVES[at_hand.reference]:
        return "reference clips" if metric.reference_kind == "set" else "one original for each clip"
    if metric.needs_captions and not at_hand.captions:
        return "captions"
    if metric.needs_factors and not at_hand.factors:
        return "the true factors of the captions, which data=moving_shapes has"
    return None


@dataclass(frozen=True)
class Scores:
    """What came out.

    Args:
        results: by metric or dimension.
        not_measured: why a metric that was asked for has no value, by name.
    """

    results: Mapping[str, MetricResult] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)


def gathered(metrics: Mapping[str, VideoMetric], left_out: Mapping[str, str] | None = None) -> Scores:
    """The results of metrics that have seen all clips. One that too few clips came to does not cost the others theirs.

    Args:
        metrics: by name.
        left_out: why others were not measured.
    """
    results: dict[str, MetricResult] = {}
    refused = dict(left_out or {})
    for name, metric in metrics.items():
        try:
            parts = {f"{name}/{part}": result for part, result in metric.dimensions().items()}
            results |= {name: metric.result(), **parts}
        except (DataError, UserError) as error:
            refused[name] = str(error)
    return Scores(results, refused)
