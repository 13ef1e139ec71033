"""The protocol of everything that turns pixels into latents and back: encode, decode, streams, exported form."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, float32, nn, promote_types

from vidlab.clip import Stride
from vidlab.errors import UserError


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian that an encoder gives, q(z | clip) = N(mean, exp(log_variance)), in the latents' scale.

    Kingma and Welling 2014 (arXiv 1312.6114), equation 9.

    Args:
        mean: where the density is highest.
        log_variance: natural logarithm of the variance; None for an encoder without randomness.
    """

    mean: Float[Tensor, "B C t h w"]
    log_variance: Float[Tensor, "B C t h w"] | None = None

    @property
    def mode(self) -> Float[Tensor, "B C t h w"]:
        """The most likely latents, which are the mean."""
        return self.mean

    def sample(self, noise: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        """Latents drawn with standard normal ``noise``; the mean where there is no randomness."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * noise


@runtime_checkable
class EncodingStream(Protocol):
    """Frames of one batch of videos in, latents out as soon as they are complete; no gradients.

    What all calls give, put together along time, is ``posterior`` of the whole videos. What is kept between calls does
    not grow with the length.
    """

    def feed(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """The distribution of the latents that are complete after these frames, at times of none.

        Args:
            pixels: any number of frames.

        Raises:
            UserError: frames that the autoencoder does not take, or of another size than before.
        """
        ...

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            UserError: frames at the end have no latent frame.
        """
        ...

    def held_values(self) -> int:
        """How many numbers are kept between calls."""
        ...


@runtime_checkable
class DecodingStream(Protocol):
    """Latents of one batch of videos in, frames out; no gradients. Put together, they are ``decode`` of all latents."""

    def feed(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Frames that are complete after these latents, not clamped; none after no latents.

        Raises:
            UserError: latents of other channels or another size than before, or after ``finish``.
        """
        ...

    def finish(self) -> Float[Tensor, "B 3 T H W"] | None:
        """The frames that still waited; None if there are none, or if this was asked before."""
        ...

    def held_values(self) -> int:
        """How many numbers are kept between calls."""
        ...


@dataclass(frozen=True)
class ExportedFormat:
    """How the weights of an autoencoder are kept where others read them.

    Args:
        told: in words, such as ``as WF-VAE is published``.
        write: writes them into a folder that holds none.
        left_out: settings for which the form has no place, by their keys, with what to do about them.
    """

    told: str
    write: Callable[[Path], None]
    left_out: Mapping[str, str] = field(default_factory=dict)


def _finite(pixels: Tensor) -> bool:
    """Whether all pixels are finite; a sum tells in a twentieth of the time, unless it overflows itself."""
    total = pixels.sum(dtype=promote_types(pixels.dtype, float32))
    return bool(total.isfinite()) or bool(pixels.isfinite().all())


class Autoencoder(nn.Module, ABC):
    """Pixels (B, 3, T, H, W) in [-1, 1] to latents (B, C, T', H', W') of about unit variance, and back.

    Subclasses set ``channels`` and ``stride``, and begin ``encode`` and ``decode`` with ``check_clip`` and
    ``check_latents``. One that codes groups of frames by themselves streams as ``FrameGroups``. Those that are trained
    declare ``hidden_matrices``, patterns of the names of matrices between the first and the last layer, which Muon may
    take.

    Attributes:
        published_class: ``_class_name`` in the ``config.json`` of published folders that this class reads; None reads
            none.
    """

    channels: int
    stride: Stride
    hidden_matrices: tuple[str, ...] = ()
    published_class: ClassVar[str | None] = None

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """Latents of a clip."""

    def posterior(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """The distribution of a clip's latents; its mode is ``encode(pixels)``.

        An encoder with a variance overrides this. The default has none.
        """
        return Posterior(self.encode(pixels))

    @abstractmethod
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels of latents; not clamped."""

    def encoding_stream(self) -> EncodingStream:
        """A stream for one batch of videos of any length, in the memory of the frames that are fed at a time.

        Raises:
            UserError: this autoencoder needs whole clips.
        """
        raise UserError(self._whole_clips())

    def decoding_stream(self) -> DecodingStream:
        """As ``encoding_stream``, of latents.

        Raises:
            UserError: this autoencoder needs all latents of a clip.
        """
        raise UserError(self._whole_clips())

    def _whole_clips(self) -> str:
        return f"{type(self).__name__} codes whole clips and cannot be fed in parts. Use frames_at_once=null."

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') for a clip size.

        Raises:
            UserError: a side is not a multiple of the stride, or the frames are not, or not 1 + a multiple of it where
                the first frame stands alone.
        """
        sizes = {"frames": frames, "height": height, "width": width}
        for name, size in sizes.items():
            step, lead = getattr(self.stride, name), self._lead(name)
            if size < max(lead, 1) or (size - lead) % step:
                rule = f"1 plus a multiple of {step}" if lead else f"a multiple of {step}"
                fits = lead + -(-(size - lead) // step) * step if lead else max(size // step, 1) * step
                raise UserError(
                    f"data.{name}={size} does not fit {type(self).__name__}: it must be {rule}. "
                    f"Use data.{name}={max(fits, 1)}."
                )
        lead = self._lead("frames")
        return (
            self.channels,
            lead + (frames - lead) // self.stride.frames,
            height // self.stride.height,
            width // self.stride.width,
        )

    def fitting_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The smallest (frames, height, width) that can be encoded and is not below the one given."""
        sizes = {"frames": frames, "height": height, "width": width}
        found = []
        for name, size in sizes.items():
            step, lead = getattr(self.stride, name), self._lead(name)
            found.append(lead + max(-(-(size - lead) // step), 1 - lead) * step)
        return found[0], found[1], found[2]

    def check_clip(self, pixels: Tensor) -> None:
        """Refuse a clip that cannot be encoded.

        Raises:
            UserError: as ``check_frames``, or frames in a number that does not fit.
        """
        self.check_frames(pixels)
        self.latent_shape(*pixels.shape[2:])

    def check_frames(self, pixels: Tensor) -> None:
        """Refuse frames that cannot be encoded, in whatever number.

        Raises:
            UserError: other than 3 colors of floats, sides that are not multiples of the stride, and, in the memory
                of the CPU, NaN or infinite values.
        """
        name = type(self).__name__
        if pixels.ndim != 5 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise UserError(
                f"{name} reads clips (B, 3, T, H, W) of 3 colors as floats in [-1, 1], and was given "
                f"{tuple(pixels.shape)} of {pixels.dtype}. Repeat a gray channel three times; divide 8 bits by 127.5, "
                "10 bits by 511.5, less 1."
            )
        self.latent_shape(1 if self.stride.first_frame_alone else self.stride.frames, *pixels.shape[3:])
        # on a GPU the question would stop the queue at every step
        if pixels.device.type == "cpu" and not _finite(pixels):
            raise UserError(f"{name}: the clip holds NaN or infinite pixels. Look at how it was read.")

    def check_latents(self, latents: Tensor) -> None:
        """Refuse what cannot be decoded.

        Raises:
            UserError: another number of channels or axes, or none of frames, rows or columns.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels or not latents.numel():
            raise UserError(
                f"{type(self).__name__} decodes latents (B, {self.channels}, T', H', W'), and was given "
                f"{tuple(latents.shape)}. They are another autoencoder's."
            )

    @classmethod
    def locate(cls, reference: str) -> str | None:
        """The absolute place of weights that ``autoencoder.path`` names; None where it must be a run.

        A class whose weights come from elsewhere, such as a hub, overrides this.
        """
        place = Path(reference).expanduser()
        found = place.is_file() or any(place.glob("*.safetensors")) or any(place.glob("*.ckpt"))
        return str(place.resolve()) if found else None

    @classmethod
    def published_settings(cls, folder: Path) -> dict[str, Any]:
        """Arguments of this class that a folder of published weights fixes; {} where it says nothing.

        Raises:
            UserError: its ``config.json`` is damaged or of something else.
        """
        return {}

    @classmethod
    def from_published(cls, folder: str | Path, **settings: Any) -> "Autoencoder":
        """The autoencoder of a published folder.

        Args:
            folder: with ``config.json`` and weights.
            settings: arguments that count before those of the folder.

        Raises:
            UserError: it cannot be read, or a setting is not the folder's.
        """
        return cls(**(cls.published_settings(Path(folder).expanduser()) | settings), path=str(folder))

    def exported_format(self) -> ExportedFormat | None:
        """How its weights are written for others; None where it has none, or they are kept by the name of their source.

        Raises:
            UserError: they cannot be read where they came from.
        """
        return None

    def _lead(self, name: str) -> int:
        """Frames at the start that have a latent frame of their own."""
        return int(name == "frames" and self.stride.first_frame_alone)

    def check_trained(self) -> None:
        """Refuse to serve a denoiser with weights that are still random; without weights there is nothing to refuse.

        Raises:
            UserError: no weights were loaded or trained.
        """
