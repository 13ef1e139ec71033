"""Guidance of videos that are made frame by frame: it may differ by frame, and compare with no history."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from typing_extensions import override

from vidlab.errors import UserError
from vidlab.sampling.guidance import Guidance, Latents

# The passes of ``SelfQuality`` that forget the frames before the current one.
WITHOUT_HISTORY = " without history"


@runtime_checkable
class ByFrame(Protocol):
    """A guidance that is not the same for every frame."""

    def at_frame(self, frame: int) -> Guidance:
        """What guides one latent frame, counted from 0."""
        ...


def at_frame(guidance: Guidance, frame: int) -> Guidance:
    """What guides one latent frame, counted from 0: the guidance itself, unless it is ``ByFrame``."""
    return guidance.at_frame(frame) if isinstance(guidance, ByFrame) else guidance


@dataclass(frozen=True)
class FirstAndLater(Guidance, ByFrame):
    """One guidance for the first frame, which is an image, and another for all later ones (Pyramid Flow).

    Args:
        first: of the first frame.
        later: of those after it.
    """

    first: Guidance
    later: Guidance

    @override
    def at_frame(self, frame: int) -> Guidance:
        return at_frame(self.later if frame else self.first, frame)

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        """Named by frame: a sampler of all frames at once knows none of them."""
        first = (f"{name} of the first frame" for name in self.first.passes)
        return (*first, *(f"{name} of later frames" for name in self.later.passes))

    def needs(self, t: float) -> tuple[str, ...]:
        """Those of no frame; ask ``at_frame``."""
        return self.passes

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """Not defined for all frames at once.

        Raises:
            ValueError: always.
        """
        raise ValueError("FirstAndLater guides one frame at a time: combine with at_frame(frame)")


@dataclass(frozen=True)
class SelfQuality(Guidance, ByFrame):
    """v_l + weight (v_h - v_l): towards what the model makes of the prompt alone (M4V, appendix, eq. 8-10).

    v_l is the guided prediction with the frames before it as history, which carry their errors along; v_h the one
    without, as of a first frame. The papers' main results do without it; the weight is not stated.

    Args:
        inner: the guidance of both.
        weight: 0 is ``inner`` alone, 1 forgets the history.
        first_frame: latent frame from which it works; 8 in the paper.
        high: highest noise level at which it works ("late stages only"). Of three stages the last begins at 0.386 and
            the second at 0.744, of two the last at 0.572.

    Raises:
        UserError: an argument out of range.
    """

    inner: Guidance
    weight: float = 0.3
    first_frame: int = 8
    high: float = 0.744

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"guidance.weight={self.weight} must not be negative; 0 changes nothing.")
        if self.first_frame < 1:
            raise UserError(f"guidance.first_frame={self.first_frame} must be at least 1: frame 0 has no history.")
        if not 0 <= self.high <= 1:
            raise UserError(f"guidance.high={self.high} must lie in [0, 1]; t = 0 is data and t = 1 is noise.")

    @override
    def at_frame(self, frame: int) -> Guidance:
        inner = at_frame(self.inner, frame)
        return inner if frame < self.first_frame else replace(self, inner=inner)

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return (*self.inner.passes, *(f"{name}{WITHOUT_HISTORY}" for name in self.inner.passes))

    def needs(self, t: float) -> tuple[str, ...]:
        """What the guidance within needs; below ``high``, once more without history."""
        names = self.inner.needs(t)
        return (*names, *(f"{name}{WITHOUT_HISTORY}" for name in names)) if t <= self.high else names

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """v_l + weight (v_h - v_l)."""
        low = self.inner.combine(predictions, t)  # M4V, eq. 8
        if t > self.high:
            return low
        # what M4V's eq. 9 combines: the passes that were not told the frames before
        alone = {name: predictions[f"{name}{WITHOUT_HISTORY}"] for name in self.inner.needs(t)}
        return low.lerp(self.inner.combine(alone, t), self.weight)  # M4V, eq. 10
