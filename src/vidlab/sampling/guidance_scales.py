"""Guidance scales, constant or changing with the noise level."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from typing_extensions import override

from vidlab.errors import UserError


@runtime_checkable
class ScaleSchedule(Protocol):
    """A guidance scale that changes with the noise level."""

    def at(self, t: float) -> float:
        """The scale at t in [0, 1]."""
        ...


Scale = float | ScaleSchedule


@dataclass(frozen=True)
class Ramp(ScaleSchedule):
    """From ``start`` at t = 1, where sampling starts, to ``end`` at t = 0.

    Args:
        start: scale of pure noise.
        end: scale of clean data.

    Raises:
        UserError: a negative scale.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_scales("guidance.scale", start=self.start, end=self.end)


@dataclass(frozen=True)
class LinearScale(Ramp):
    """A ramp that is linear in t."""

    @override
    def at(self, t: float) -> float:
        """end + (start - end) t."""
        return self.end + (self.start - self.end) * t


@dataclass(frozen=True)
class CosineScale(Ramp):
    """A ramp along half a cosine: flat at both ends."""

    @override
    def at(self, t: float) -> float:
        """end + (start - end) (1 - cos(pi t)) / 2."""
        return self.end + (self.start - self.end) * (1 - math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class EarlyScale(ScaleSchedule):
    """Strong at high noise, then constant: from ``start`` at t = 1 to ``end`` at ``until``, linearly, and ``then``.

    Kwon et al. 2024 (HARIVO, appendix D) sample with 10 to 15 down to 0.7 T and 7.5 below; whether the former is a
    ramp is not said. Equal ``start`` and ``end`` make it constant.

    Args:
        start: scale of pure noise.
        end: scale at ``until``.
        then: scale below.
        until: lowest noise level of the strong scales, in (0, 1).

    Raises:
        UserError: a negative scale, or ``until`` out of range.
    """

    start: float = 15.0
    end: float = 10.0
    then: float = 7.5
    until: float = 0.7

    def __post_init__(self) -> None:
        check_scales("guidance.scale", start=self.start, end=self.end, then=self.then)
        if not 0 < self.until < 1:
            raise UserError(f"guidance.scale.until={self.until} must lie in (0, 1); t = 0 is data and t = 1 is noise.")

    @override
    def at(self, t: float) -> float:
        """The scale; at ``until`` itself, ``end``."""
        if t < self.until:
            return self.then
        return self.end + (self.start - self.end) * (t - self.until) / (1 - self.until)


def scale_at(scale: Scale, t: float) -> float:
    """The scale at noise level t."""
    return scale.at(t) if isinstance(scale, ScaleSchedule) else scale


def check_scales(node: str, **scales: Scale) -> None:
    """Refuse negative scales.

    Raises:
        UserError: naming the first.
    """
    for name, value in scales.items():
        if not isinstance(value, ScaleSchedule) and value < 0:
            raise UserError(f"{node}.{name}={value} must not be negative; 1 means no guidance.")
