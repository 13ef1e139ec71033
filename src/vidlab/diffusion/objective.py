"""The protocol of objectives: from clean latents to what a backbone reads, and from its answer to a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput, LatentShape
from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.schedules import over_latents
from vidlab.randomness import KeyedRNG

Latents = Float[Tensor, "B C T H W"]
Levels = Float[Tensor, "B"] | Float[Tensor, "B T"]
Backbone = Callable[[DenoiserInput], DenoiserOutput]


@dataclass(frozen=True)
class Corrupted:
    """A training example: the backbone's input, its target, and how the error counts.

    Args:
        input: what the backbone reads.
        target: what it should predict.
        weight: factor on the squared error, one per clip (B,) or latent frame (B, T).
        loss_mask: 1 where the error counts, 0 where the answer was given away; broadcastable to the target,
            or None when everything counts.
        part: which part of the problem the example is, such as a stage; "" where there is one. Losses are logged by it.
    """

    input: DenoiserInput
    target: Latents
    weight: Levels
    loss_mask: Float[Tensor, "B #C #T #H #W"] | None = None
    part: str = ""


@dataclass(frozen=True)
class ObjectiveLoss:
    """The scalar to minimize, the same error per clip, and the elements each clip's is a mean over.

    ``total`` is sum(per_clip * counted) / sum(counted). ``part`` is that of the example.
    """

    total: Float[Tensor, ""]
    per_clip: Float[Tensor, "B"]
    counted: Float[Tensor, "B"]
    part: str = ""


@dataclass(frozen=True)
class InputShape:
    """Sizes of one kind of input that a backbone reads in training.

    Args:
        latent: the latents to be predicted.
        history: each part of the history read besides.
        share: of the training steps that read it; the shares of an objective's shapes add up to 1.
    """

    latent: LatentShape
    history: tuple[LatentShape, ...] = ()
    share: float = 1.0


@runtime_checkable
class Objective(Protocol):
    """A training problem: free to choose noise level, resolution, stage and history.

    Noise levels t lie in [0, 1], 0 is data and 1 is noise. What an objective gives a backbone may be smaller than the
    clip, or a part of it with a history of earlier frames; nobody but its samplers needs to know.

    ``process`` names the corruption that is learned to be undone, such as ``gaussian``: the samplers of an objective
    are those of the same ``process``.
    """

    process: ClassVar[str]

    def tags(self) -> Mapping[str, str]:
        """What is learned, in words for a table of runs."""
        ...

    def input_shapes(self, latent: LatentShape) -> tuple[InputShape, ...]:
        """What a backbone reads in training on clips of these latents; what a step costs follows from it."""
        ...

    def prepare(self, x0: Latents, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt clean latents with numbers from ``draw``."""
        ...

    def prepare_at(self, x0: Latents, t: Levels, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt clean latents at given noise levels, one per clip or per latent frame.

        Every number t in [0, 1] can be given for all clips, and whatever ``validation_levels`` returns.
        """
        ...

    def validation_levels(self, draw: KeyedRNG) -> tuple[Levels, ...]:
        """Levels that the validation loss is a mean over, drawn as in no training: evenly spread over [0, 1].

        Each is for one call of ``prepare_at``.
        """
        ...

    def loss(self, corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
        """The error of a prediction."""
        ...

    def denoised(self, output: DenoiserOutput, input: DenoiserInput) -> Denoised:
        """Exact conversion of a prediction to clean latents and noise, in the shape of the prediction."""
        ...

    def predict_x0(
        self, backbone: Backbone, x0: Latents, log_snr: float, conditions: Conditions, draw: KeyedRNG
    ) -> Latents:
        """Clean latents that a backbone tells, in one evaluation of each, from latents noised to a log SNR.

        They have the shape of ``x0``, whatever the backbone reads: errors compare across objectives.
        """
        ...


def squared_error(corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
    """Weighted squared error, averaged where the mask counts: sum(w m e^2) / sum(m); 0 where nothing counts."""
    error = (output.prediction.float() - corrupted.target.float()).square()  # (B, C, T, H, W)
    error = error * over_latents(corrupted.weight, error)
    if corrupted.loss_mask is None:
        per_clip = error.mean(dim=(1, 2, 3, 4))  # (B,)
        return ObjectiveLoss(per_clip.mean(), per_clip, torch.full_like(per_clip, error[0].numel()))
    mask = corrupted.loss_mask.expand_as(error)
    total, counted = (error * mask).sum(dim=(1, 2, 3, 4)), mask.sum(dim=(1, 2, 3, 4))  # (B,) each
    mean = total.sum() / counted.sum().clamp(min=1)
    return ObjectiveLoss(mean, total / counted.clamp(min=1), counted)
