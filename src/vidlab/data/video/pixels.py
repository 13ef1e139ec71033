"""Converts single clips between uint8 frames and pixels in [-1, 1]."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def to_pixels(frames: np.ndarray) -> Float[Tensor, "3 T H W"]:
    """uint8 (T, H, W, 3) frames as float32 pixels in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    # colors are brought apart while a pixel is one byte, not four
    planes = np.ascontiguousarray(frames.transpose(3, 0, 1, 2))
    return torch.from_numpy(planes).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Float[Tensor, "3 T H W"]) -> np.ndarray:
    """Pixels in [-1, 1] as uint8 (T, H, W, 3) frames: rounded, values outside the range clamped."""
    scaled = ((pixels.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.to("cpu", torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()
