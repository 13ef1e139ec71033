"""Micro-conditions: numbers about a clip that a backbone may read (SDXL, section 2.2; STIV)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidlab.clip import IMAGE_PROMPT, TOKEN_DROP
from vidlab.randomness import KeyedRNG


def micro_conditions(
    shapes: Mapping[str, tuple[int, ...]],
    clip_shape: Sequence[int],
    count: int,
    draw: KeyedRNG | None = None,
    given: Mapping[str, Tensor | Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """The micro-conditions a backbone asks for, those of an uncropped clip where nothing else is given.

    Args:
        shapes: by name, the shape for one clip (``VideoDenoiser.micro_shapes``).
        clip_shape: (frames, height, width) in pixels.
        count: clips.
        draw: the batch's random numbers in training; None leaves out ``token_drop``, so that no token is dropped.
        given: numbers by name, (count, n) or (n,) for all clips alike.

    Returns:
        (count, ...) by name.
    """
    frames, height, width = clip_shape
    plain = {
        "original_resolution": (height, width), "crop": (0, 0), "sampling_stride": (1,), "frames": (frames,),
        IMAGE_PROMPT: (0,),
    }  # fmt: skip
    numbers: dict[str, Tensor | Sequence[float]] = {**plain, **(given or {})}
    found = {
        name: torch.as_tensor(numbers[name], dtype=torch.float32).expand(count, *shape)
        for name, shape in shapes.items()
        if name != TOKEN_DROP
    }
    if TOKEN_DROP in shapes and draw is not None:
        found[TOKEN_DROP] = draw.uniform(TOKEN_DROP, shapes[TOKEN_DROP])
    return found
