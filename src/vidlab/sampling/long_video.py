"""Videos longer than the model's clip, made of clips that know frames of each other."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.errors import UserError

Pixels = Float[Tensor, "B 3 T H W"]
LongVideo = Float[Tensor, "B 3 longer H W"]
Frames = Bool[Tensor, "B T"]
MakeClip = Callable[[Pixels, Frames, int], Pixels]
"""Given pixels, which of their frames count, and the number of the clip: a clip of the same shape."""


def continued(make: MakeClip, pixels: Pixels, known: Frames, segments: int, overlap: int) -> LongVideo:
    """A clip, then more, each of which knows the last ``overlap`` frames of the one before.

    Returns:
        T + (segments - 1) (T - overlap) frames.

    Raises:
        UserError: an overlap that leaves nothing known or nothing new.
    """
    frames = pixels.shape[2]
    if segments > 1 and not 0 < overlap < frames:
        raise UserError(f"overlap={overlap} must be at least 1 and below the clip's {frames} frames.")
    video = clip = make(pixels, known, 0)
    for number in range(1, segments):
        start = torch.zeros_like(clip)
        start[:, :, :overlap] = clip[:, :, -overlap:]
        clip = make(start, _marked(known, slice(0, overlap)), number)
        video = torch.cat([video, clip[:, :, overlap:]], dim=2)  # (B, 3, T + number (T - overlap), H, W)
    return video


def filled_in(make: MakeClip, key_frames: Pixels) -> LongVideo:
    """Clips between neighboring key frames, each of which knows its first and last frame (STIV, long videos).

    STIV makes the key frames with the same model, told a larger sampling stride, and counts (K - 1) T frames; here a
    key frame that two clips share is shown once.

    Args:
        make: called once per gap, with the clip's number.
        key_frames: (B, 3, K, H, W) with K of at least 2, as many frames per clip as K.

    Returns:
        (K - 1) (K - 1) + 1 frames.
    """
    count = key_frames.shape[2]
    ends = torch.zeros(key_frames.shape[0], count, dtype=torch.bool, device=key_frames.device)
    ends[:, 0] = ends[:, -1] = True
    parts = [key_frames[:, :, :1]]
    for number in range(count - 1):
        clip = torch.zeros_like(key_frames)
        clip[:, :, 0], clip[:, :, -1] = key_frames[:, :, number], key_frames[:, :, number + 1]
        parts.append(make(clip, ends, number)[:, :, 1:])
    return torch.cat(parts, dim=2)  # (B, 3, (K - 1)^2 + 1, H, W)


def _marked(like: Frames, part: slice) -> Frames:
    marked = torch.zeros_like(like)
    marked[:, part] = True
    return marked
