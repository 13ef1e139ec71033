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


def interpolated(make: MakeClip, key_frames: Pixels) -> LongVideo:
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


def upsampled(make: MakeClip, given: Pixels, every: int, frames: int) -> LongVideo:
    """A video with ``every - 1`` frames made between two neighbors of a given one (STIV, temporal upsampling).

    Clips of the model know frames 0, every, 2 every, ... Neighboring clips share one given frame; what a clip makes
    after its last given frame is left out, and of a last clip that would not be full, what the one before has made.

    Args:
        make: called once per clip, with its number.
        given: (B, 3, K, H, W) with K of at least 2.
        every: n; each n-th frame of a clip is given.
        frames: T, of the model's clips.

    Returns:
        (K - 1) every + 1 frames, of which the given ones are as they were.

    Raises:
        UserError: a single frame, or clips with a single given frame.
    """
    count, places = given.shape[2], range(0, frames, every)
    if count < 2 or len(places) < 2:
        raise UserError(f"a video of {count} frames cannot be upsampled by clips of {frames}, one in {every} given.")
    longer = given.new_zeros(*given.shape[:2], (count - 1) * every + 1, *given.shape[3:])
    for number, start in reversed(list(enumerate(starts_of_clips(count, len(places))))):
        shown = given[:, :, start : start + len(places)]
        clip = given.new_zeros(*given.shape[:2], frames, *given.shape[3:])
        clip[:, :, 0 : shown.shape[2] * every : every] = shown
        known = torch.zeros(given.shape[0], frames, dtype=torch.bool, device=given.device)
        known[:, 0 : shown.shape[2] * every : every] = True
        length = (shown.shape[2] - 1) * every + 1
        longer[:, :, start * every : start * every + length] = make(clip, known, number)[:, :, :length]
    longer[:, :, ::every] = given
    return longer


def starts_of_clips(count: int, places: int) -> list[int]:
    """The first given frame of each clip, where ``count`` frames are given and a clip takes ``places`` of them."""
    last = max(count - places, 0)
    return [*range(0, last, places - 1), last]


def _marked(like: Frames, part: slice) -> Frames:
    marked = torch.zeros_like(like)
    marked[:, part] = True
    return marked
