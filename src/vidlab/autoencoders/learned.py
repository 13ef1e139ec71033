"""The protocol of learned video autoencoders: moments of z, decoding, what a loss may ask for by name, latent scale.

A second one is one file and one YAML: a subclass of ``LearnedAutoencoder``, and a choice of ``conf/autoencoder`` that
names it. Training (``task=autoencoder``), evaluation and streaming know this file alone.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder, Posterior
from vidlab.autoencoders.weight_files import load_by_name
from vidlab.clip import Stride
from vidlab.errors import UserError

WAVELET_BANDS = "wavelet_bands"
"""The feature that the wavelet loss compares: sub-bands, level by level, of equal shapes in encoder and decoder."""

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]
Features = Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder gives.

    Args:
        posterior: of the *unscaled* latents z, with a log variance: the KL term pulls it to a standard normal.
        features: what was requested, by name.
    """

    posterior: Posterior
    features: Features = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderOutput:
    """What a decoder gives: pixels, not clamped, and what was requested, by name."""

    pixels: Pixels
    features: Features = field(default_factory=dict)


class LearnedAutoencoder(Autoencoder):
    """An autoencoder that can be trained. Its networks speak z; latents are ``(z - latent_shift) * latent_scale``.

    Subclasses implement ``encode_to_moments``, ``decode_z`` and ``last_decoder_weight``, and name in ``features`` what
    the first two can return besides. Their constructors take ``path``, None or weights for ``load_trained``.

    Args:
        channels: C of the latents.
        stride: pixels to a latent position.
        scale, shift: one number for all channels, or one for each, that give latents about unit variance.

    Attributes:
        lr_multipliers: name pattern of parameters to a factor on their learning rate, where training names no others.
        trained: whether weights were loaded; random ones serve no denoiser.

    Raises:
        UserError: a wrong number of channels, or a scale that is not above 0.
    """

    features: frozenset[str] = frozenset()
    lr_multipliers: ClassVar[Mapping[str, float]] = {}
    latent_scale: Tensor
    latent_shift: Tensor

    def __init__(
        self, channels: int, stride: Stride, scale: float | Sequence[float] = 1.0, shift: float | Sequence[float] = 0.0
    ) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.trained = False
        self.register_buffer("latent_scale", self.per_channel(scale, "scale"))
        self.register_buffer("latent_shift", self.per_channel(shift, "shift"))

    @abstractmethod
    def encode_to_moments(self, pixels: Pixels, requested: frozenset[str] = frozenset()) -> EncoderOutput:
        """Mean and log variance of z, of a whole clip.

        Args:
            pixels: clips in [-1, 1].
            requested: names out of ``features``.

        Raises:
            UserError: a clip the autoencoder cannot take.
            ValueError: a feature it does not have.
        """

    @abstractmethod
    def decode_z(self, z: Latents, requested: frozenset[str] = frozenset()) -> DecoderOutput:
        """Pixels of *unscaled* latents, of a whole clip.

        Raises:
            ValueError: a feature the decoder does not have.
        """

    @abstractmethod
    def last_decoder_weight(self) -> Tensor:
        """The parameter at which gradients of the reconstruction and the adversarial loss are balanced.

        It is the weight of the decoder's last layer (Esser et al. 2021, arXiv 2012.09841, equation 7).
        """

    @override
    def posterior(self, pixels: Pixels) -> Posterior:
        return self.scaled(self.encode_to_moments(pixels).posterior)

    @override
    def encode(self, pixels: Pixels) -> Latents:
        return self.posterior(pixels).mode

    @override
    def decode(self, latents: Latents) -> Pixels:
        self.check_latents(latents)
        return self.decode_z(self.unscaled(latents)).pixels

    def scaled(self, posterior: Posterior) -> Posterior:
        """The distribution of the latents, of that of z."""
        mean, log_variance = (posterior.mean - self.latent_shift) * self.latent_scale, posterior.log_variance
        return Posterior(mean, None if log_variance is None else log_variance + 2 * self.latent_scale.log())

    def unscaled(self, latents: Latents) -> Latents:
        """The decoder's z of latents."""
        return latents / self.latent_scale + self.latent_shift

    def check_requested(self, requested: frozenset[str]) -> None:
        """Refuse features that this autoencoder does not have.

        Raises:
            ValueError: naming them, and those there are.
        """
        unknown = requested - self.features
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no feature {sorted(unknown)}; it has {sorted(self.features) or 'none'}"
            )

    def set_latent_scale(
        self, scale: float | Sequence[float] | None = None, shift: float | Sequence[float] | None = None
    ) -> None:
        """Change what z is shifted and multiplied by; None leaves one as it is.

        Raises:
            UserError: a wrong number of channels, or a scale that is not above 0.
        """
        with torch.no_grad():
            if scale is not None:
                self.latent_scale.copy_(self.per_channel(scale, "scale"))
            if shift is not None:
                self.latent_shift.copy_(self.per_channel(shift, "shift"))

    def per_channel(self, value: float | Sequence[float], name: str) -> Float[Tensor, "C 1 1 1"]:
        """A scale or shift for each channel.

        Raises:
            UserError: a wrong number of channels, or a scale that is not above 0.
        """
        values = [float(value)] * self.channels if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) != self.channels:
            raise UserError(
                f"autoencoder.{name} has {len(values)} numbers and the latents have {self.channels} channels: give one "
                "number, or one for each channel."
            )
        if not all(math.isfinite(v) for v in values) or (name == "scale" and min(values) <= 0):
            raise UserError(f"autoencoder.{name}={value} must be finite{', and above 0' if name == 'scale' else ''}.")
        return torch.tensor(values).view(-1, 1, 1, 1)

    def load_trained(self, path: str | Path) -> None:
        """Take the weights of a run of ``task=autoencoder``, or of a file with exactly this network's names.

        Args:
            path: a checkpoint, a ``.safetensors`` file, or a folder with one of them.

        Raises:
            UserError: it is missing, damaged, or of another network; the weights are then unchanged.
        """
        load_by_name(self, path)
        self.trained = True

    @override
    def check_trained(self) -> None:
        if not self.trained:
            raise UserError(
                "autoencoder.path is not set, so the autoencoder has random weights. Give a run of task=autoencoder, "
                "or published weights (a folder with config.json and diffusion_pytorch_model.safetensors)."
            )
