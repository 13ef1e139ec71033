"""A differentiable score of what moving-shapes captions say: the colors of objects, and where resting ones are."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.data.moving_shapes.factors import PLACE_LIMITS
from vidlab.data.moving_shapes.scene import COLORS, SIZES
from vidlab.errors import UserError
from vidlab.factors import ObjectFactors
from vidlab.metrics.shapes.grade import PLACE_SLACK, POSITIONS

# Distances in RGB of 0 to 255. Half way between right and wrong of the judge: any two names are at least 80 apart.
HALF = 55.0
# How near a pixel must be to count as the object's; a background is at least 90 away and then weighs about 0.001.
NEAR = 35.0
# Weight of every pixel in the center of an object, so that there is a center where nothing has its color.
FAINT = 1e-4


@dataclass(frozen=True)
class ColorAndPlace:
    """How well frames show the captioned color at the captioned place, in [0, 1].

    Color: the pixels nearest to the named color, as many as a small object has, score 1 / (1 + (d / 55)^2) each, d
    being their distance in RGB. Place: with exp(-(d / 35)^2) as weights, their center's distance from the named part of
    the frame scores exp(-(distance / 0.12)^2). An object scores color times place, or color where its caption names
    no place; a frame is the mean over objects whose color is named, a clip the mean over frames. A clip whose caption
    names no color scores 1 and has no gradient.

    Unlike ``ShapesJudge`` it sees neither shapes nor motion and judges frames one by one; gradients pass.

    Args:
        place: whether the place counts.
    """

    place: bool = True

    def __call__(self, pixels: Float[Tensor, "B 3 T H W"], batch: ClipBatch) -> Float[Tensor, "B"]:
        """A score for each clip.

        Raises:
            UserError: clips without factors.
        """
        if len(batch.factors) != len(pixels) or any(one is None for one in batch.factors):
            raise UserError("The reward of color and place reads the factors of data=moving_shapes. Use losses=none.")
        found = []
        for clip, factors in zip(pixels.float(), batch.factors, strict=True):
            assert factors is not None
            named = [o for n, o in enumerate(factors.objects) if f"objects.{n}.color" in factors.named]
            told = [self._object(clip, o, f"objects.{factors.objects.index(o)}.position" in factors.named)
                    for o in named]  # fmt: skip
            found.append(torch.stack(told).mean() if told else clip.new_ones(()))
        return torch.stack(found)

    def _object(self, clip: Float[Tensor, "3 T H W"], wanted: ObjectFactors, placed: bool) -> Float[Tensor, ""]:
        color = clip.new_tensor(COLORS[wanted.color]).view(3, 1, 1, 1)
        away = ((clip + 1) * 127.5 - color).square().sum(dim=0)  # (T, H, W), squared distances
        height, width = away.shape[1:]
        short = min(height, width)
        pixels = max(1, int(math.pi / 4 * (SIZES["small"] * short) ** 2))
        nearest = away.flatten(1).topk(pixels, largest=False).values  # (T, pixels)
        score = (1 / (1 + nearest / HALF**2)).mean(dim=1)  # (T,)
        if self.place and placed:
            score = score * _place_score(away, wanted.position)
        return score.mean()


def _place_score(away: Float[Tensor, "T H W"], position: str) -> Float[Tensor, "T"]:
    weight = torch.exp(-away / NEAR**2) + FAINT
    outside = []
    for axis, third in zip((2, 1), POSITIONS[position], strict=True):
        size = away.shape[axis]
        places = (torch.arange(size, device=away.device) + 0.5) / size
        profile = weight.sum(dim=3 - axis)  # (T, size)
        center = (profile * places).sum(dim=1) / profile.sum(dim=1)
        first, inner, outer, last = PLACE_LIMITS
        low, high = {"low": (0.0, first), "middle": (inner, outer), "high": (last, 1.0)}[third]
        outside.append((low - center).clamp(min=0) + (center - high).clamp(min=0))
    farthest = torch.stack(outside).amax(dim=0)
    return torch.exp(-((farthest / PLACE_SLACK) ** 2))
