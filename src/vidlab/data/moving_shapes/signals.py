"""Structure signals of rendered clips from their true factors: outlines and masks without a detector's errors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.data.moving_shapes.render import coverage
from vidlab.data.moving_shapes.scene import Body, Canvas
from vidlab.errors import UserError
from vidlab.factors import Factors, ObjectFactors


@dataclass(frozen=True)
class ShapeMasks(SignalExtractor):
    """The part of each pixel that an object covers, in [0, 1]."""

    channels: int = field(default=1, init=False)

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """Coverage by any object.

        Raises:
            UserError: a clip whose factors nobody knows.
        """
        return _of_each(clips, lambda shapes: 1 - np.prod(1 - shapes, axis=0))


@dataclass(frozen=True)
class ShapeEdges(SignalExtractor):
    """1 at the outermost pixels of what is seen of each object, 0 elsewhere.

    A pixel belongs to the front object that covers at least half of it, and is outermost where one of its four
    neighbors belongs to something else. The border of the frame makes no edge.
    """

    channels: int = field(default=1, init=False)

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """Outlines of all objects.

        Raises:
            UserError: a clip whose factors nobody knows.
        """
        return _of_each(clips, lambda shapes: outlines(owners(shapes)))


def _of_each(clips: SourceClips, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Float[Tensor, "B 1 T H W"]:
    known = [factors for factors in clips.factors if factors is not None]
    if len(known) != len(clips.pixels):
        raise UserError(
            "structure=shape_edges and shape_masks read the true factors of rendered clips, which only "
            "data=moving_shapes has. Use structure=canny for other videos."
        )
    canvas = Canvas(*clips.pixels.shape[2:])
    found = np.stack([make(shapes_of(factors, canvas)) for factors in known]).astype(np.float32)  # (B, T, H, W)
    return torch.from_numpy(found)[:, None].to(clips.pixels.device)


def shapes_of(factors: Factors, canvas: Canvas) -> NDArray[np.floating[Any]]:
    """How much of each pixel each object covers, back to front, whatever stands before it: (objects, T, H, W)."""
    return np.stack([coverage(_body(one, canvas), canvas) for one in factors.objects])


def owners(shapes: NDArray[np.floating[Any]]) -> NDArray[np.integer[Any]]:
    """The number of the front object that covers half of each pixel, from 1; 0 is the background: (T, H, W)."""
    found = np.zeros(shapes.shape[1:], dtype=np.int64)
    for number, covered in enumerate(shapes, start=1):
        found[covered >= 0.5] = number
    return found


def outlines(owner: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Pixels of an object with a neighbor of something else."""
    edge = np.zeros(owner.shape, dtype=bool)
    for axis in (-2, -1):
        differs = np.diff(owner, axis=axis) != 0
        before = [slice(None)] * owner.ndim
        after = list(before)
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    return edge & (owner > 0)


def _body(one: ObjectFactors, canvas: Canvas) -> Body:
    x, y = np.array(one.x) * canvas.wide, np.array(one.y) * canvas.high  # in short sides
    return Body(one.shape, one.color, x, y, np.array(one.diameter), np.array(one.angle))
