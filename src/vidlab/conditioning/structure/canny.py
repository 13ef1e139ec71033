"""Edges by Canny's detector (Canny 1986), as OpenCV has it."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import UserError


@dataclass(frozen=True)
class Canny(SignalExtractor):
    """1 at edges of each frame, 0 elsewhere.

    Args:
        low: gradient, of 8-bit colors, from which an edge that begins elsewhere goes on.
        high: gradient that begins an edge.
        blur: standard deviation in pixels of a Gaussian before it; 0 is none.

    Raises:
        UserError: thresholds out of order, or a blur below 0.
    """

    low: float = 100.0
    high: float = 200.0
    blur: float = 0.0
    channels: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or self.blur < 0:
            raise UserError(
                f"structure.canny: low={self.low} high={self.high} blur={self.blur}: give 0 <= low <= high, blur >= 0."
            )

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """Edges of the colors: the channel of the largest gradient counts at each pixel."""
        import cv2

        frames = clips.pixels.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        found = []
        for frame in frames.permute(0, 2, 3, 4, 1).flatten(0, 1).cpu().numpy():  # (B T, H, W, 3)
            frame = np.ascontiguousarray(frame)
            frame = cv2.GaussianBlur(frame, (0, 0), self.blur) if self.blur else frame
            found.append(cv2.Canny(frame, self.low, self.high))
        edges = torch.from_numpy(np.stack(found)).unflatten(0, (len(frames), -1))  # (B, T, H, W)
        return (edges > 0).float()[:, None].to(clips.pixels.device)
