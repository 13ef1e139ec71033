"""A guidance scale that is strong while layout is decided, and constant after."""

from dataclasses import dataclass

from typing_extensions import override

from vidlab.errors import UserError
from vidlab.sampling.guidance import ScaleSchedule, check_scales


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
