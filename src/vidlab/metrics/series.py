"""Names of measurements by what they depend on: evaluations that differ in it are different curves."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from typing import Any

from vidlab.metrics.results import MetricResult
from vidlab.sampling.base import Sampler
from vidlab.sampling.guidance import Guidance


@dataclass(frozen=True)
class Series:
    """What the videos of an evaluation depend on besides the weights.

    Args:
        num_videos: how many of them.
        sampler: with its steps.
        guidance: with its scales.
        others: further settings by name, such as the seed; those that are None say nothing.
    """

    num_videos: int
    sampler: Sampler
    guidance: Guidance
    others: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Such as ``N64-Euler-32-ClassifierFreeGuidance-4.0-1f0c``; the last part tells all settings apart."""
        parts = [f"N{self.num_videos}", self.sampler.name, str(self.sampler.steps), *_words(self.guidance)]
        return "-".join([*parts, blake2b(self.text.encode(), digest_size=2).hexdigest()])

    @property
    def text(self) -> str:
        """Every setting."""
        others = {name: value for name, value in sorted(self.others.items()) if value is not None}
        told = {"num_videos": self.num_videos, "sampler": self.sampler, "guidance": self.guidance, **others}
        return ", ".join(f"{name}={_told(value)}" for name, value in told.items())

    def scalars(self, results: Mapping[str, MetricResult]) -> dict[str, float]:
        """Values as ``eval/<name>/<metric>``, the ends of intervals under ``eval-low`` and ``eval-high``."""
        found: dict[str, float] = {}
        for metric, result in results.items():
            found[f"eval/{self.name}/{metric}"] = result.value
            if result.interval is not None:
                found[f"eval-low/{self.name}/{metric}"] = result.interval.low
                found[f"eval-high/{self.name}/{metric}"] = result.interval.high
        return found


def _words(part: object) -> list[str]:
    """The class of a part and its numbers, of the parts inside it too."""
    numbers = [value for value in _settings(part).values() if isinstance(value, int | float)]
    inside = [value for value in _settings(part).values() if is_dataclass(value)]
    words = [type(part).__name__, *(f"{number:g}" for number in numbers if not isinstance(number, bool))]
    return [*words, *(word for value in inside for word in _words(value))]


def _settings(part: object) -> dict[str, Any]:
    if is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in fields(part)}
    return dict(sorted(getattr(part, "__dict__", {}).items()))


def _told(value: Any) -> str:
    """A value without the address in memory that ``repr`` gives of some objects."""
    if isinstance(value, str | int | float | tuple | list | dict | None):
        return str(value)
    inside = ", ".join(f"{name}={_told(one)}" for name, one in _settings(value).items())
    return f"{type(value).__name__}({inside})"
