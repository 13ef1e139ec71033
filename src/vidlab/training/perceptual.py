"""The perceptual distance that an autoencoder is trained on."""

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.assets import AssetError
from vidlab.errors import UserError
from vidlab.perceptual.lpips import LPIPS, Net, load_lpips

SMALLEST = {"alex": 35, "vgg": 16}  # pixels a side that the trunks' pools leave something to read


def lpips(net: Net = "alex", weights: str | None = None) -> LPIPS:
    """LPIPS with trained weights.

    Args:
        net: ``alex`` costs little and is what evaluation uses; ``vgg`` is the authors' choice for losses.
        weights: a local copy of the pinned file; None fetches it once.

    Raises:
        UserError: the weights are not here and cannot be fetched.
    """
    try:
        return load_lpips(net, weights)
    except AssetError as error:
        raise UserError(f"task.perceptual: {error} task.perceptual=null trains without LPIPS.") from error


def check_size(network: LPIPS | None, clip_shape: tuple[int, int, int]) -> None:
    """Refuse frames that LPIPS cannot read.

    Raises:
        UserError: (frames, height, width) with a side too small.
    """
    least = 0 if network is None else SMALLEST[network.net]
    if network is not None and min(clip_shape[1:]) < least:
        raise UserError(
            f"data.height={clip_shape[1]}, data.width={clip_shape[2]}: LPIPS ({network.net}) reads frames of at least "
            f"{least} pixels a side. Use larger ones, or task.perceptual=null."
        )


def frame_distances(
    network: LPIPS, pixels: Float[Tensor, "B 3 T H W"], reconstruction: Float[Tensor, "B 3 T H W"]
) -> Float[Tensor, "frames"]:
    """LPIPS of each of the B T frames."""
    first, second = (clips.transpose(1, 2).flatten(0, 1) for clips in (pixels, reconstruction))
    with torch.autocast(first.device.type, enabled=False):
        return network(first.float(), second.float())
