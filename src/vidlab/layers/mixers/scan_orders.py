"""Scan orders: in which order a mixer that runs from left to right visits the tokens of a frame.

M4V (arXiv 2506.10915, appendix) alternates eight paths from layer to layer, two from each corner of the frame, one
along columns and one along rows. In ZigMa (Hu et al. 2024, arXiv 2403.13802) they are serpentines, whose lines run
there and back. M4V's words, "corner to corner", fit rasters as well, whose lines all run the same way; both are here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from vidlab.errors import UserError

Order = Int[Tensor, "L"]

# where a path starts, (bottom, right), and whether its lines are rows
PATHS = {
    "a": (False, False, False), "b": (False, False, True),
    "c": (True, False, False), "d": (True, False, True),
    "e": (True, True, False), "f": (True, True, True),
    "g": (False, True, False), "h": (False, True, True),
}  # fmt: skip
STYLES = ("serpentine", "raster")


def scan_order(
    path: str, height: int, width: int, serpentine: bool = True, device: torch.device | str | None = None
) -> Order:
    """The row-major index of the token that stands at each place of the sequence: ``x[:, order]`` is in scan order.

    Args:
        path: a to h.
        height: of the frame, in tokens.
        width: of the frame, in tokens.
        serpentine: every second line runs back.
        device: where the order is.
    """
    bottom, right, rows = PATHS[path]
    index = torch.arange(height * width, device=device).view(height, width)
    index = index.flip([axis for axis, from_end in enumerate((bottom, right)) if from_end])
    lines = (index if rows else index.T).clone()
    if serpentine:
        lines[1::2] = lines[1::2].flip(1)
    return lines.flatten()


def frames_order(
    path: str,
    sizes: Sequence[tuple[int, int]],
    serpentine: bool = True,
    device: torch.device | str | None = None,
) -> Order:
    """The scan orders of frames in a row, (height, width) each: every frame is visited before the next."""
    parts, start = [], 0
    for height, width in sizes:
        parts.append(start + scan_order(path, height, width, serpentine, device))
        start += height * width
    return torch.cat(parts)


def inverse(order: Order) -> Order:
    """What undoes an order: ``x[:, order][:, inverse(order)]`` is x."""
    return order.argsort()


@dataclass(frozen=True)
class ScanOrders:
    """Which path each layer takes: layer l takes path l modulo their number.

    Args:
        paths: letters a to h in turn; one alone is a single direction. M4V leaves the order of the letters open.
        style: ``serpentine`` or ``raster``.

    Raises:
        UserError: an unknown letter or style, or no letter.
    """

    paths: str = "abcdefgh"
    style: str = "serpentine"

    def __post_init__(self) -> None:
        if not self.paths or not set(self.paths) <= set(PATHS):
            raise UserError(f"scan paths {self.paths!r}: give one or more of the letters {''.join(PATHS)}.")
        if self.style not in STYLES:
            raise UserError(f"scan style {self.style!r}: choose one of {', '.join(STYLES)}.")

    def order(self, layer: int, sizes: Sequence[tuple[int, int]], device: torch.device | str | None = None) -> Order:
        """The order of a layer for frames of the given (height, width)."""
        path = self.paths[layer % len(self.paths)]
        return frames_order(path, sizes, self.style == "serpentine", device)
