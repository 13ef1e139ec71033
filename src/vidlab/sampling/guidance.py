"""Guidance: how predictions under different conditions become one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError

Latents = Float[Tensor, "B C T H W"]


@runtime_checkable
class Guidance(Protocol):
    """Names the conditions it needs at noise level t and combines the predictions made under them.

    Conditions are named ``"text"`` (the prompt) and ``"null"`` (the empty prompt).
    """

    def needs(self, t: float) -> tuple[str, ...]:
        """Names of the conditions to evaluate at t."""
        ...

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """One prediction from those asked for."""
        ...


@dataclass(frozen=True)
class NoGuidance:
    """The conditional prediction as it is."""

    def needs(self, t: float) -> tuple[str, ...]:
        """Only the prompt."""
        return ("text",)

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """The prompt's prediction."""
        return predictions["text"]


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Null + scale (text - null) (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Args:
        scale: 1 is no guidance, 0 ignores the prompt.

    Raises:
        UserError: a negative scale.
    """

    scale: float = 4.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise UserError(f"guidance.scale={self.scale} must not be negative; 1 means no guidance.")

    def needs(self, t: float) -> tuple[str, ...]:
        """Both conditions, or only the prompt when scale is 1."""
        return ("text",) if self.scale == 1 else ("text", "null")

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """Extrapolate from the unconditional to the conditional prediction."""
        if self.scale == 1:
            return predictions["text"]
        return predictions["null"].lerp(predictions["text"], self.scale)
