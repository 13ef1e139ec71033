"""The metrics of a comparison: which decide, which way is better, what they are called."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vidlab.errors import UserError
from vidlab.lab.cli.error_messages import did_you_mean
from vidlab.lab.compare.reading.runs import ComparedRun

# What decides where it was measured, best first. Every further metric costs the others power.
MAIN = ("shapes_judge", "fvd", "val/x0_mse")
LOSS = "val/loss"
HIGHER = ("shapes_judge", "psnr", "ssim", "clipsim", "is_i3d_k400", "temporal_flickering", "motion_smoothness",
          "consistency")  # fmt: skip
NEITHER = ("motion_magnitude", "dynamic_degree", "latent_std")


@dataclass(frozen=True)
class Measure:
    """A metric as runs log it.

    Args:
        key: its name in the store, such as ``eval/N16-Euler-32-...-1f0c/shapes_judge``.
        label: what pages call it.
        higher_is_better: None where neither direction is better.
        series: what an evaluation's videos depended on, by name; empty for others.
    """

    key: str
    label: str
    higher_is_better: bool | None
    series: str = ""

    @property
    def direction(self) -> str:
        """In words."""
        return {True: "higher is better", False: "lower is better", None: "neither is better"}[self.higher_is_better]


def measure_of(key: str) -> Measure:
    """A metric by its name in the store."""
    series, label = "", key
    if key.startswith("eval/"):
        _, series, label = (*key.split("/", 2), "")[:3]
    name = label.removeprefix("val/").split("/")[0]
    higher = None if name.startswith(NEITHER) else name.startswith(HIGHER)
    return Measure(key, label, higher, series)


def measures_of(configurations: Iterable[Iterable[ComparedRun]]) -> tuple[Measure, ...]:
    """What configurations were measured by, training losses and costs aside; those that decide come first.

    A label is unique. Of a metric that was measured in several series, such as during training and by ``evaluate.py``,
    the series that most configurations share has the bare label; the labels of the others name theirs.

    Args:
        configurations: the runs of each.
    """
    having: Counter[str] = Counter()  # configurations by key, in the order in which keys first come
    for runs in configurations:
        keys = dict.fromkeys(key for run in runs for key in run.curves if key.startswith(("val/", "eval/")))
        having.update(keys.keys())
    most: dict[str, Measure] = {}
    for one in sorted(map(measure_of, having), key=lambda one: -having[one.key]):
        most.setdefault(one.label, one)
    found = [
        one if most[one.label] == one else replace(one, label=f"{one.label} ({one.series})")
        for one in map(measure_of, having)
    ]
    return tuple(sorted(found, key=lambda one: (_rank(one), one.label.count("/") - one.key.startswith("val/"))))


def _rank(measure: Measure) -> int:
    order = (*MAIN, LOSS)
    return order.index(measure.label) if measure.label in order else len(order)


def main_measures(measures: Sequence[Measure], asked: Sequence[str] = ()) -> tuple[Measure, ...]:
    """Those that a comparison is decided by: what was asked for, otherwise ``MAIN``, otherwise the loss.

    Raises:
        UserError: nothing that was asked for was measured.
    """
    labels = list(dict.fromkeys(one.label for one in measures))
    for word in asked:
        if not any(word in (one.label, one.key) for one in measures):
            raise UserError(f"--metric {word}: no run was measured by it.{did_you_mean(word, labels, 'Measured')}")
    if asked:
        return tuple(one for word in asked for one in measures if word in (one.label, one.key))
    known = tuple(one for one in measures if one.label in MAIN)
    return known or tuple(one for one in measures if one.label == LOSS)
