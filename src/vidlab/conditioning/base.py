"""The protocol of conditioning on known frames, and the arithmetic of known frames in latent space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import Controls, History, KnownLatents, LatentShape, Stride
from vidlab.errors import UserError
from vidlab.factors import Factors
from vidlab.randomness import KeyedRNG
from vidlab.structure import StructureSignal

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]
Frames = Bool[Tensor, "B T"]
MakeDenoiser = Callable[..., Any]


@runtime_checkable
class FrameEncoder(Protocol):
    """What conditioning needs of an autoencoder: latents, and how many frames each holds."""

    stride: Stride

    def encode(self, pixels: Pixels) -> Latents:
        """Latents of a clip."""
        ...


@dataclass(frozen=True)
class TrainingClips:
    """Training clips, of which something is to be known.

    Args:
        pixels: None where clips come encoded.
        x0: their latents.
        draw: their random numbers.
        step: the training step.
        factors: the true factors of rendered clips, one for each; empty where nobody knows them.
        strides: source frames from one frame of each clip to the next; None where nobody knows them.
    """

    pixels: Pixels | None
    x0: Latents
    draw: KeyedRNG
    step: int
    factors: Sequence[Factors | None] = ()
    strides: Float[Tensor, "B"] | None = None


@dataclass(frozen=True)
class FrameConditions:
    """What a model is told of the clip besides its caption.

    Args:
        known: latents that are given in place of noisy ones.
        controls: extra input channels.
        history: given latents that are read beside the noisy ones.
        structure: signals of edges, depth and the like.
    """

    known: KnownLatents | None = None
    controls: Controls | None = None
    history: tuple[History, ...] = ()
    structure: StructureSignal | None = None


@runtime_checkable
class Conditioning(Protocol):
    """Chooses what is known of a training clip, and puts what a user knows into the same form.

    ``takes_frames`` tells whether any frame can be given at generation, ``reads_pixels`` whether ``for_training`` looks
    at the pixels of training clips; those that do not can be trained on cached latents.
    """

    @property
    def takes_frames(self) -> bool:
        """Whether any frame can be given at generation."""
        ...

    @property
    def reads_pixels(self) -> bool:
        """Whether ``for_training`` looks at pixels."""
        ...

    @property
    def tells_structure(self) -> bool:
        """Whether signals of structure are given, which a denoiser of ``made_to_read`` reads."""
        return False

    @property
    def every(self) -> int | None:
        """n where each n-th frame is given, so that the model makes those between: a temporal upsampler."""
        return None

    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        """Channels of each part of the controls; () without controls."""
        ...

    def default_num_frames(self, frames: int) -> int:
        """How many frames at the start of a clip of ``frames`` training makes known where a user does not say."""
        ...

    def gives_all(self, latent_frames: int) -> bool:
        """Whether training would make every frame of such clips known, with no error left that counts.

        ``for_training`` makes none known then.
        """
        ...

    def for_training(self, clips: TrainingClips, encoder: FrameEncoder) -> FrameConditions:
        """What is known of training clips."""
        ...

    def made_to_read(self, backbone: MakeDenoiser, stride: Stride) -> MakeDenoiser:
        """Makes, in place of a denoiser, one that reads what it otherwise could not; most leave it as it is.

        Args:
            backbone: makes the denoiser, given ``latent``, ``text_width`` and its settings.
            stride: pixels to a latent position.
        """
        return backbone

    def whole_structure(self, pixels: Pixels, factors: Sequence[Factors | None] = ()) -> StructureSignal | None:
        """The structure of all frames of clips, such as held-out ones; None where none is told.

        Args:
            pixels: of the clips.
            factors: the true factors of rendered clips, one for each; empty where nobody knows them.
        """
        return None

    def for_inference(self, pixels: Pixels, frames: Frames, encoder: FrameEncoder) -> FrameConditions:
        """The conditions of the frames marked True; the pixels of others are not looked at.

        Raises:
            UserError: frames that this conditioning cannot make known.
        """
        ...


@dataclass(frozen=True)
class NoConditioning(Conditioning):
    """Nothing is known but the caption."""

    takes_frames: bool = False
    reads_pixels: bool = False

    @override
    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        return ()

    @override
    def default_num_frames(self, frames: int) -> int:
        return 0

    @override
    def gives_all(self, latent_frames: int) -> bool:
        return False

    @override
    def for_training(self, clips: TrainingClips, encoder: FrameEncoder) -> FrameConditions:
        return FrameConditions()

    @override
    def for_inference(self, pixels: Pixels, frames: Frames, encoder: FrameEncoder) -> FrameConditions:
        if frames.any():
            raise UserError(
                "This model was trained without conditioning on frames, so no image or video can be given. "
                "Train one with conditioning=frame_replacement or conditioning=masked_video."
            )
        return FrameConditions()


def check_conditioning_frames(
    count: int, conditioning: Conditioning, frames: int, name: str = "conditioning_frames"
) -> None:
    """Whether the first frames of clips can be given to a model.

    Args:
        count: of given frames.
        conditioning: with which the model was trained.
        frames: of a clip.
        name: of the setting, for the message.

    Raises:
        UserError: the model takes no frames, or the clips have no more than these.
    """
    if count and not conditioning.takes_frames:
        raise UserError(f"{name}={count}: this model was trained without conditioning on frames. Use {name}=0.")
    if not 0 <= count < frames:
        raise UserError(f"{name}={count}: the clips have {frames} frames; use 0 to {frames - 1}.")


def by_latent_frame(value: Tensor, latent_frames: int, stride: Stride) -> Tensor:
    """(B, T, ...) per pixel frame to (B, T', f, ...) per latent frame; a lone first frame is repeated f times.

    Open-Sora Plan v1.3 folds masks this way: 93 frames become 24 x 4, of which the first four are frame 0, and one
    frame becomes 1 x 4. The stride is the autoencoder's: sizes alone do not tell it, a single frame least of all.

    Raises:
        ValueError: so many frames do not make so many latent frames.
    """
    frames, factor = value.shape[1], stride.frames
    expected = 1 + factor * (latent_frames - 1) if stride.first_frame_alone else factor * latent_frames
    if frames != expected:
        raise ValueError(f"{frames} frames do not map onto {latent_frames} latent frames of stride {factor}")
    if stride.first_frame_alone:
        value = torch.cat([value[:, :1].repeat_interleave(factor, dim=1), value[:, 1:]], dim=1)
    return value.unflatten(1, (latent_frames, factor))
