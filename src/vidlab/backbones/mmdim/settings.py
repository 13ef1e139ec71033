"""Settings of MM-DiM that cannot work, refused by the name of their key; and what follows from the others."""

import math
from collections.abc import Sequence

from vidlab.backbones.sizes import check_patch, check_positive
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.layers.mixers.recomposition import FrameGrids
from vidlab.layers.rope import axis_split

CHOICES = {
    "register_by": ("level", "role"),
    "text_ends": ("both", "left"),
    "history_timestep": ("current", "clean"),
}


def check_settings(
    latent: LatentShape, patch: Sequence[int], dual_depth: int, sizes: dict[str, int], chosen: dict[str, str]
) -> None:
    """Refuse what cannot work.

    Args:
        latent: the latents.
        patch: (frames, rows, columns) of latents in one token.
        dual_depth: may be 0.
        sizes: by key, at least 1, with ``width`` and ``heads``.
        chosen: by key of ``CHOICES``.

    Raises:
        UserError: naming the key.
    """
    check_positive(**sizes, patch=min(patch))
    if dual_depth < 0:
        raise UserError(f"model.backbone.dual_depth={dual_depth} must not be negative.")
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"model.backbone.width={sizes['width']} is not a multiple of model.backbone.heads={sizes['heads']}."
        )
    for key, value in chosen.items():
        if value not in CHOICES[key]:
            raise UserError(f"model.backbone.{key}={value}: choose {' or '.join(CHOICES[key])}.")
    if (chosen["history_timestep"], chosen["text_ends"]) == ("clean", "both"):
        raise UserError(
            "model.backbone.history_timestep=clean needs model.backbone.text_ends=left: text at the right end reads "
            "the noisy frames, and the history of the next block reads the text."
        )
    check_patch(latent, patch)


def rotation_planes(head_dim: int, axes: Sequence[int] | None) -> tuple[int, int, int]:
    """Rotation planes of (t, y, x), half of their channels; evenly shared where ``axes`` is None.

    Raises:
        UserError: axes that are not three even numbers of the head's channels together.
    """
    if axes is None:
        try:
            return axis_split(head_dim)
        except ValueError as error:
            raise UserError(f"model.backbone.heads: {error}.") from None
    if len(axes) != 3 or sum(axes) != head_dim or any(count % 2 or count < 0 for count in axes):
        raise UserError(
            f"model.backbone.rope_axes={list(axes)}: give three even numbers (frames, rows, columns) whose sum is the "
            f"width of a head, {head_dim}; or null to share it evenly."
        )
    t, y, x = (count // 2 for count in axes)
    return t, y, x


def level_registers(frames: FrameGrids, full: tuple[int, int], bank: int) -> tuple[int, ...]:
    """A row of the bank for each frame's resolution: the last at full resolution, the one before at half of it, ...

    Args:
        frames: the grids.
        full: (rows, columns) of a frame at full resolution. Between two levels the nearer counts, and beyond the ends
            the end.
        bank: K.
    """
    halvings = (round(math.log2(full[0] * full[1] / places) / 2) for places in frames.places)
    return tuple(min(max(bank - 1 - count, 0), bank - 1) for count in halvings)


def role_registers(frames: FrameGrids, bank: int) -> tuple[int, ...]:
    """The last row for predicted frames, the one before for the newest of the history, ..., the first for old ones."""
    before = tuple(max(bank - 1 - age, 0) for age in range(frames.history, 0, -1))
    return before + (bank - 1,) * frames.predicted
