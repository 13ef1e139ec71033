"""Sizes of a transformer that cannot work, refused by the name of their key."""

from collections.abc import Sequence

from vidlab.clip import LatentShape
from vidlab.errors import UserError


def check_sizes(latent: LatentShape, width: int, depth: int, heads: int, patch: Sequence[int], multiple: int) -> None:
    """Refuse sizes that do not divide; ``multiple`` is what a head's width must be a multiple of.

    Raises:
        UserError: naming the key.
    """
    if len(patch) != 3:
        raise UserError(f"model.backbone.patch={list(patch)}: give three numbers (frames, rows, columns).")
    check_positive(width=width, depth=depth, heads=heads, patch=min(patch))
    if width % (heads * multiple):
        raise UserError(
            f"model.backbone.heads={heads} with width={width}: the width of a head must be a multiple of {multiple} "
            f"for rotary positions. Use width={max(round(width / heads / multiple), 1) * multiple * heads}."
        )
    check_patch(latent, patch)


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        UserError: naming the key.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.backbone.{name}={size} must be at least 1.")


def check_patch(latent: LatentShape, patch: Sequence[int]) -> None:
    """Refuse a patch (frames, rows, columns) that does not divide the latents.

    Raises:
        UserError: naming the size.
    """
    sizes = {"frames": latent.frames, "height": latent.height, "width": latent.width}
    for (name, size), step in zip(sizes.items(), patch, strict=True):
        if size % step:
            raise UserError(
                f"model.backbone.patch={list(patch)} does not divide the latents: their {name} is {size}. "
                f"Change data.{name} or the patch."
            )
