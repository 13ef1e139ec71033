"""Frame replacement: known latent frames take the place of noisy ones (STIV, arXiv 2412.07730, section 3)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from vidlab.clip import KnownLatents, LatentShape, Stride
from vidlab.conditioning.base import (
    Conditioning,
    FrameConditions,
    FrameEncoder,
    Frames,
    Latents,
    Pixels,
    TrainingClips,
    by_latent_frame,
)
from vidlab.conditioning.patterns import EveryNth, First, FramePattern
from vidlab.errors import UserError


@dataclass(frozen=True)
class FrameReplacement(Conditioning):
    """After noising, known latent frames are put in clean, and the error there does not count.

    Encode, noise, replace, then patches: with a temporal patch of 2 the first token holds a clean and a noisy frame.
    With probability ``image_dropout`` a clip keeps its noisy frames and is supervised everywhere, which teaches plain
    text-to-video and makes guidance by the image possible. At generation known frames are replaced at each step.

    A clip all of whose frames the pattern names (a single frame; two with both ends) would be given away whole, with no
    error that counts: it is trained as plain text-to-video, like a dropped one.

    Args:
        pattern: which latent frames are known in training.
        image_dropout: share of clips of which nothing is known; 0.08 in STIV.
        key_frames: which latent frames are known, in place of ``pattern``, of training clips whose frames are more than
            ``stride`` source frames apart: one model makes key frames and what is between them (STIV, long videos).
            None treats all clips alike.
        stride: source frames from one frame to the next of clips that are no key frames.
        unconditional: what stands at known frames when guidance asks for a prediction without the image. STIV does
            not say. ``own``: the frames are denoised from noise like all others and thrown away at the end;
            ``noised``: they follow the image, noised to the current level.

    Raises:
        UserError: an argument is out of range.
    """

    pattern: FramePattern = field(default_factory=First)
    image_dropout: float = 0.08
    unconditional: str = "own"
    key_frames: FramePattern | None = None
    stride: int = 1
    takes_frames: bool = field(default=True, init=False)
    reads_pixels: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.image_dropout <= 1:
            raise UserError(f"conditioning.image_dropout={self.image_dropout} must lie in [0, 1].")
        if self.unconditional not in ("own", "noised"):
            raise UserError(f"conditioning.unconditional={self.unconditional}: choose own or noised.")

    @override
    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        return ()

    @property
    @override
    def every(self) -> int | None:
        return self.pattern.n if isinstance(self.pattern, EveryNth) else None

    @override
    def default_num_frames(self, frames: int) -> int:
        """The frames at the start that the pattern gives."""
        return max(int(self.pattern.frames(frames).long().cumprod(0).sum()), 1)

    @override
    def for_training(self, clips: TrainingClips, encoder: FrameEncoder) -> FrameConditions:
        """The pattern's frames of each clip that keeps its image; none where they are all there are.

        Raises:
            ValueError: there are ``key_frames``, and the clips do not tell their strides.
        """
        x0 = clips.x0
        kept = clips.draw.uniform("image_dropout").to(x0.device) >= self.image_dropout  # (B,)
        frames = _not_all(self.pattern, x0.shape[2]).to(x0.device)
        if self.key_frames is not None:
            if clips.strides is None:
                raise ValueError("key frames are told by TrainingClips.strides, which is None")
            far = (clips.strides > self.stride).to(x0.device)  # (B,)
            frames = torch.where(far[:, None], _not_all(self.key_frames, x0.shape[2]).to(x0.device), frames)
        return FrameConditions(known=self._known(x0, kept[:, None] & frames))

    @override
    def gives_all(self, latent_frames: int) -> bool:
        """Whether the pattern would leave no frame of so many to learn from; such clips are trained without it."""
        return bool(self.pattern.frames(latent_frames).all())

    @override
    def for_inference(self, pixels: Pixels, frames: Frames, encoder: FrameEncoder) -> FrameConditions:
        """The latent frames of the given pixel frames.

        Raises:
            UserError: a latent frame is known in part.
        """
        x0 = encoder.encode(torch.where(frames[:, None, :, None, None], pixels, 0))
        folded = by_latent_frame(frames, x0.shape[2], encoder.stride)  # (B, t, frames of a latent frame)
        if (folded.any(dim=2) & ~folded.all(dim=2)).any():
            raise UserError(
                f"{int(frames[0].sum())} of {frames.shape[1]} frames are given, but a latent frame of this autoencoder "
                f"holds {folded.shape[2]} frames, and only whole ones can replace noise. Give more frames, or train "
                "with an autoencoder of one frame per latent (autoencoder=haar_frames)."
            )
        return FrameConditions(known=self._known(x0, folded.all(dim=2)))

    def _known(self, latents: Latents, frames: Frames) -> KnownLatents:
        return KnownLatents(
            latents, frames[:, None, :, None, None].to(latents.dtype), follows_image=self.unconditional == "noised"
        )


def _not_all(pattern: FramePattern, count: int) -> Bool[Tensor, "count"]:
    frames = pattern.frames(count)
    return torch.zeros_like(frames) if frames.all() else frames
