"""Guidance: how predictions under different conditions become one.

It acts on the network's predictions. At fixed z these are linear in x0 and eps, so a linear combination of predictions
is the same combination of x0; ``Renormalize`` and ``Rescale`` are not linear and depend on what the network predicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.sampling.guidance_scales import Scale, check_scales, scale_at

Latents = Float[Tensor, "B C T H W"]


@runtime_checkable
class Guidance(Protocol):
    """Names the conditions it needs at noise level t and combines the predictions made under them.

    Conditions are named ``"full"`` (the prompt, and the image where there is one), ``"image"`` (the image with an empty
    prompt) and ``"null"`` (neither).
    """

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of all conditions it may need, at whatever noise level."""
        ...

    def needs(self, t: float) -> tuple[str, ...]:
        """Names of the conditions to evaluate at t."""
        ...

    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """One prediction from those asked for."""
        ...


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The conditional prediction as it is."""

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return ("full",)

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return ("full",)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        return predictions["full"]


@dataclass(frozen=True)
class _OneScale(Guidance):
    """Weak + scale (full - weak), for the prediction ``weak`` that sees less."""

    weak: ClassVar[str]

    scale: Scale = 1.0

    def __post_init__(self) -> None:
        check_scales("guidance", scale=self.scale)

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return ("full",) if self.scale == 1 else ("full", self.weak)

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        """Both conditions, or only the full one where the scale is 1."""
        return ("full",) if scale_at(self.scale, t) == 1 else ("full", self.weak)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        scale = scale_at(self.scale, t)
        if scale == 1:
            return predictions["full"]
        return predictions[self.weak].lerp(predictions["full"], scale)  # Ho & Salimans 2022, eq. 6


@dataclass(frozen=True)
class ClassifierFreeGuidance(_OneScale):
    """Null + scale (full - null) (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    With an image this is the joint guidance of STIV: prompt and image are dropped together.

    Args:
        scale: 1 is no guidance, 0 ignores the conditions; a number or a schedule.

    Raises:
        UserError: a negative scale.
    """

    weak = "null"

    scale: Scale = 4.0


@dataclass(frozen=True)
class PromptGuidance(_OneScale):
    """Image + scale (full - image): the prompt guides, and both passes see the image, as Open-Sora Plan samples.

    Without an image this is classifier-free guidance.

    Args:
        scale: 1 is no guidance, 0 ignores the prompt; a number or a schedule.

    Raises:
        UserError: a negative scale.
    """

    weak = "image"

    scale: Scale = 7.5


@dataclass(frozen=True)
class SeparateImageText(Guidance):
    """Null + image_scale (image - null) + text_scale (full - image), three evaluations per step.

    STIV's separate guidance (Lin et al. 2024, SIT-CFG), after InstructPix2Pix (Brooks et al. 2023, eq. 3).

    Args:
        image_scale: how far the image pulls; 1 is no guidance by it. A number or a schedule.
        text_scale: how far the prompt pulls, given the image. A number or a schedule.

    Raises:
        UserError: a negative scale.
    """

    image_scale: Scale = 1.5
    text_scale: Scale = 7.5

    def __post_init__(self) -> None:
        check_scales("guidance", image_scale=self.image_scale, text_scale=self.text_scale)

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return ("full", "image", "null")

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return ("full", "image", "null")

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        full, image, null = (predictions[name] for name in self.needs(t))
        # Brooks et al. 2023, eq. 3
        return null + scale_at(self.image_scale, t) * (image - null) + scale_at(self.text_scale, t) * (full - image)


@dataclass(frozen=True)
class Interval(Guidance):
    """Guidance for ``low <= t <= high`` only; elsewhere the conditional prediction (Kynkäänniemi et al. 2024).

    Guidance at high noise narrows the variety of samples, and at low noise changes little at full cost.

    Args:
        inner: the guidance within.
        low: lowest guided noise level.
        high: highest guided noise level.

    Raises:
        UserError: bounds that do not satisfy 0 <= low <= high <= 1.
    """

    inner: Guidance
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(
                f"guidance.low={self.low} and guidance.high={self.high} must satisfy 0 <= low <= high <= 1; t = 0 is "
                "data and t = 1 is noise."
            )

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("full", *self.inner.passes)))

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return self._chosen(t).needs(t)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        return self._chosen(t).combine(predictions, t)

    def _chosen(self, t: float) -> Guidance:
        return self.inner if self.low <= t <= self.high else NoGuidance()


@dataclass(frozen=True)
class Renormalize(Guidance):
    """Keeps the direction of the guided prediction and gives it the norm of the conditional one (STIV, CFG-renorm).

    The paper leaves the axes of the norm open; here it is taken over all of a clip (C, T, H, W).

    Args:
        inner: the guidance whose result is renormalized.
    """

    inner: Guidance

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inner.passes, "full")))

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return _with_full(self.inner, t)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """Guided |full| / |guided|."""
        guided = self.inner.combine(predictions, t)
        return guided * _ratio(_norm(predictions["full"]), _norm(guided))


@dataclass(frozen=True)
class Rescale(Guidance):
    """Mixes the guided prediction with itself at the standard deviation of the conditional one.

    Lin et al. 2023, eq. 15 and 16: against the over-exposure that large scales bring. Deviations are over all of a
    clip (C, T, H, W).

    Args:
        inner: the guidance whose result is rescaled.
        factor: share of the rescaled prediction in [0, 1]; 0 changes nothing.

    Raises:
        UserError: ``factor`` out of range.
    """

    inner: Guidance
    factor: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise UserError(f"guidance.factor={self.factor} must lie in [0, 1]; 0 changes nothing, 0.7 is usual.")

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inner.passes, "full")))

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return _with_full(self.inner, t)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        """Guided (factor std(full) / std(guided) + 1 - factor)."""
        guided = self.inner.combine(predictions, t)
        ratio = _ratio(_deviation(predictions["full"]), _deviation(guided))
        return guided * (self.factor * ratio + 1 - self.factor)  # Lin et al. 2023, eq. 15 and 16


def _with_full(inner: Guidance, t: float) -> tuple[str, ...]:
    names = inner.needs(t)
    return names if "full" in names else (*names, "full")


def _norm(latents: Latents) -> Tensor:
    return torch.linalg.vector_norm(latents, dim=(1, 2, 3, 4), keepdim=True)


def _deviation(latents: Latents) -> Tensor:
    return _norm(latents - latents.mean(dim=(1, 2, 3, 4), keepdim=True))


def _ratio(wanted: Tensor, given: Tensor) -> Tensor:
    """Wanted / given, finite where ``given`` vanishes."""
    return wanted / given.clamp(min=torch.finfo(given.dtype).tiny)
