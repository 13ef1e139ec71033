"""Several metrics fed together."""

from collections.abc import Mapping
from dataclasses import dataclass

from vidlab.metrics.base import ReferenceKind, VideoMetric
from vidlab.metrics.features import share_extractors

_SERVES: dict[str, tuple[str, ...]] = {"none": ("none",), "set": ("none", "set"), "paired": ("none", "set", "paired")}


@dataclass(frozen=True)
class Selection:
    """Metrics that can be measured, and why the others cannot, both by name."""

    metrics: dict[str, VideoMetric]
    left_out: dict[str, str]


def select(metrics: Mapping[str, VideoMetric | None], reference: ReferenceKind, captions: bool) -> Selection:
    """The metrics that what is at hand allows, with equal feature networks made one.

    Args:
        metrics: by name; None (a metric taken out on the command line) is passed over.
        reference: what the clips can be compared with: nothing, a set of real clips, or one original for each clip.
        captions: whether the clips have captions.
    """
    chosen: dict[str, VideoMetric] = {}
    left_out: dict[str, str] = {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        if metric.reference_kind not in _SERVES[reference]:
            wanted = "reference clips" if metric.reference_kind == "set" else "one original for each clip"
            left_out[name] = f"{name} needs {wanted}"
        elif metric.needs_captions and not captions:
            left_out[name] = f"{name} needs captions"
        else:
            chosen[name] = metric
    share_extractors(chosen)
    return Selection(chosen, left_out)
