"""Guidance that looks at all frames of the clean latents at once, after predictions have been combined."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable

from vidlab.diffusion.gaussian import GAUSSIAN
from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.schedules import PathCoefficients
from vidlab.errors import UserError
from vidlab.sampling.guidance import Guidance


@runtime_checkable
class VideoGuidance(Protocol):
    """A guidance that corrects what the combined prediction says of a whole video. It stands around all others."""

    def corrected(self, denoised: Denoised, path: PathCoefficients) -> Denoised:
        """Other clean latents and noise that explain the same noisy latents.

        Args:
            denoised: those of the combined prediction, float32.
            path: alpha and sigma at the present level, broadcastable to them.
        """
        ...


def check_video_guidance(guidance: Guidance, process: str) -> None:
    """Refuse a guidance of whole videos where it would not act.

    Args:
        guidance: the one chosen.
        process: of the sampler.

    Raises:
        UserError: it stands within another guidance, or the sampler makes one frame after another.
    """
    if isinstance(guidance, VideoGuidance) and process != GAUSSIAN:
        raise UserError(
            f"guidance={type(guidance).__name__} compares all frames of a video, and a sampler of the {process} "
            f"process does not make them at once. Use it with objectives of the {GAUSSIAN} process."
        )
    for outer, inner in _nested(guidance):
        if isinstance(inner, VideoGuidance):
            raise UserError(
                f"guidance: {type(inner).__name__} stands within {type(outer).__name__}, where it would not act. "
                f"Put it outermost: guidance=mitigating_gradient guidance.inner=...."
            )


def _nested(guidance: Guidance) -> Iterator[tuple[Guidance, Guidance]]:
    """Every guidance within another, with the one around it."""
    if not is_dataclass(guidance):
        return
    for field in fields(guidance):
        inner = getattr(guidance, field.name)
        if isinstance(inner, Guidance):
            yield guidance, inner
            yield from _nested(inner)
