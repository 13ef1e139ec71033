"""Latents to patches and back, and what is known per frame to what is known per token."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vidlab.layers.layouts import Grid


def patch_grid(latents: Float[Tensor, "B C T H W"], patch: Sequence[int]) -> Grid:
    """The token grid of latents.

    Raises:
        ValueError: the patch (frames, rows, columns) does not divide the latents.
    """
    sizes = latents.shape[2:]
    if any(size % step for size, step in zip(sizes, patch, strict=True)):
        raise ValueError(
            f"latents of {'x'.join(map(str, sizes))} do not divide into patches of {'x'.join(map(str, patch))}"
        )
    return Grid(*(size // step for size, step in zip(sizes, patch, strict=True)))


def patchify(latents: Float[Tensor, "B C T H W"], patch: Sequence[int]) -> Float[Tensor, "B L K"]:
    """One row per patch, tokens ordered (frames, rows, columns), features (channels, frames, rows, columns).

    That is the order of a flattened convolution weight (D, C, p, q, r).
    """
    p, q, r = patch
    return rearrange(latents, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=p, q=q, r=r)


def unpatchify(patches: Float[Tensor, "B L K"], grid: Grid, patch: Sequence[int]) -> Float[Tensor, "B C T H W"]:
    """The inverse of ``patchify``."""
    p, q, r = patch
    return rearrange(
        patches, "b (t h w) (c p q r) -> b c (t p) (h q) (w r)",
        t=grid.frames, h=grid.height, w=grid.width, p=p, q=q, r=r,
    )  # fmt: skip


def inflated_embedding(
    weight: Float[Tensor, "D K"], channels: int, patch: Sequence[int]
) -> Float[Tensor, "D inflated"] | None:
    """The embedding weight of patches with more frames, each given an equal share, or None where it cannot be.

    With n times the frames each holds W / n, so that a video without motion is embedded as its image was. STIV
    inflates its convolution along time without giving the formula; this one keeps the image model's function.
    """
    share = _times_the_frames(weight.shape[1], channels, patch)
    if share is None:
        return None
    frames = weight.unflatten(1, (channels, -1, patch[1] * patch[2])).repeat(1, 1, share, 1)  # (D, C, p, q r)
    return frames.flatten(1) / share


def inflated_head(value: Float[Tensor, "K *D"], channels: int, patch: Sequence[int]) -> Float[Tensor, "J *D"] | None:
    """The output weight or bias of patches with more frames, each answering as the image did, or None."""
    share = _times_the_frames(value.shape[0], channels, patch)
    if share is None:
        return None
    frames = value.unflatten(0, (channels, -1, patch[1] * patch[2]))  # (C, p, q r, ...)
    return frames.repeat(1, share, *(1 for _ in frames.shape[2:])).flatten(0, 2)


def _times_the_frames(features: int, channels: int, patch: Sequence[int]) -> int | None:
    wanted = channels * patch[0] * patch[1] * patch[2]
    return wanted // features if wanted % features == 0 and patch[0] % (wanted // features) == 0 else None


def per_token(condition: Float[Tensor, "B D"] | Float[Tensor, "B T D"], patch_frames: int, grid: Grid) -> Tensor:
    """(B, D) to (B, 1, D); (B, T, D), one per latent frame, to (B, L, D), averaged over a patch's frames."""
    if condition.ndim == 2:
        return condition[:, None]  # (B, 1, D)
    per_patch = rearrange(condition, "b (t p) d -> b t p d", p=patch_frames).mean(dim=2)  # (B, T / p, D)
    return per_patch.repeat_interleave(grid.places, dim=1)  # (B, L, D)
