"""Resizing clips for frozen feature networks, by a named filter: scores move with the filter."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError

Filter = str  # a name of _MODES
# Plain bilinear is what the usual FVD and FID programs do; without antialiasing it aliases when it shrinks.
_MODES = {
    "bilinear": ("bilinear", False),
    "bilinear_antialias": ("bilinear", True),
    "bicubic_antialias": ("bicubic", True),
    "area": ("area", False),
}


def resize_frames(
    images: Float[Tensor, "B C H W"], height: int, width: int, resize: Filter = "bilinear"
) -> Float[Tensor, "B C h w"]:
    """Images at another size, pixel centers at half positions; values stay in [-1, 1]. Equal sizes change nothing.

    Raises:
        UserError: an unknown filter.
    """
    if resize not in _MODES:
        raise UserError(f"resize={resize}: known filters are {', '.join(_MODES)}.")
    if images.shape[2:] == (height, width):
        return images
    mode, antialias = _MODES[resize]
    corners = None if mode == "area" else False
    return F.interpolate(images, (height, width), mode=mode, antialias=antialias, align_corners=corners).clamp(-1, 1)


def resize_videos(
    videos: Float[Tensor, "B C T H W"], height: int, width: int, resize: Filter = "bilinear"
) -> Float[Tensor, "B C T h w"]:
    """Clips at another size, frame by frame."""
    clips, channels, frames, *size = videos.shape
    if tuple(size) == (height, width):
        return videos
    flat = videos.transpose(1, 2).reshape(clips * frames, channels, *size)  # (B T, C, H, W)
    small = resize_frames(flat, height, width, resize)
    return small.view(clips, frames, channels, height, width).transpose(1, 2)
