"""MaskDiT for video (Zheng et al. 2023, as STIV uses it): most blocks see a share of the places of every frame."""

from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from vidlab.clip import TOKEN_DROP
from vidlab.layers.layouts import Grid

Kept = Int[Tensor, "B K"]
Tokens = Float[Tensor, "B L D"]


def kept_places(scores: Float[Tensor, "B places"], ratio: float) -> Kept:
    """The places (row * columns + column) each clip keeps, in order: those with the lowest scores.

    Args:
        scores: one random number per place.
        ratio: share of places that are dropped; at least one is kept.
    """
    count = max(1, round(scores.shape[1] * (1 - ratio)))
    return scores.argsort(dim=1)[:, :count].sort(dim=1).values


def keep(tokens: Tokens, kept: Kept, grid: Grid) -> tuple[Float[Tensor, "B k D"], Grid]:
    """Tokens of the kept places, the same in all frames, and their grid: one row of places per frame."""
    frames = tokens.unflatten(1, (grid.frames, grid.places))  # (B, T, places, D)
    index = repeat(kept, "b k -> b t k d", t=grid.frames, d=tokens.shape[-1])
    return frames.gather(2, index).flatten(1, 2), Grid(grid.frames, 1, kept.shape[1])


def fill(tokens: Float[Tensor, "B k D"], kept: Kept, grid: Grid, token: Float[Tensor, "D"]) -> Tokens:
    """The whole grid again: kept tokens at their places, ``token`` at all others."""
    whole = token.to(tokens.dtype).expand(len(tokens), grid.frames, grid.places, -1)  # (B, T, places, D)
    index = repeat(kept, "b k -> b t k d", t=grid.frames, d=tokens.shape[-1])
    return whole.scatter(2, index, tokens.unflatten(1, (grid.frames, -1))).flatten(1, 2)


def keep_rotation(rotation: Float[Tensor, "L 1 half 2"], kept: Kept, grid: Grid) -> Float[Tensor, "B k 1 half 2"]:
    """The angles of the kept places: each keeps its position in the whole grid."""
    frames = rotation.unflatten(0, (grid.frames, grid.places))  # (T, places, 1, d / 2, 2)
    return rearrange(frames[:, kept], "t b k one half two -> b (t k) one half two")


def checked_scores(scores: Tensor | None, batch: int, grid: Grid) -> Float[Tensor, "B places"]:
    """The scores of this step, checked.

    Raises:
        ValueError: there are none, or of another shape.
    """
    if scores is None:
        raise ValueError(
            f"mask_ratio is above 0 in training, but the input's micro has no {TOKEN_DROP!r}: uniform numbers (batch, "
            f"places), here {(batch, grid.places)}, drawn by clip so that the dropped places do not depend on the batch"
        )
    if tuple(scores.shape) != (batch, grid.places):
        raise ValueError(
            f"micro {TOKEN_DROP!r} is {tuple(scores.shape)} and must be (batch, places) = {(batch, grid.places)}"
        )
    return scores
