"""LPIPS as a loss of autoencoder training: trained weights, smallest frames, distances frame by frame."""

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.assets import AssetError
from vidlab.errors import UserError
from vidlab.perceptual.lpips import LPIPS, Net, load_lpips


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


def check_size(network: LPIPS | None, height: int, width: int) -> None:
    """Refuse frames that LPIPS cannot read.

    Raises:
        UserError: a side in pixels is too small.
    """
    if network is not None and min(height, width) < network.least_side:
        raise UserError(
            f"data.height={height}, data.width={width}: LPIPS ({network.net}) reads frames of at least "
            f"{network.least_side} pixels a side. Use larger ones, or task.perceptual=null."
        )


def frame_distances(
    network: LPIPS, pixels: Float[Tensor, "B 3 T H W"], reconstruction: Float[Tensor, "B 3 T H W"]
) -> Float[Tensor, "frames"]:
    """LPIPS of each of the B T frames."""
    first, second = (clips.transpose(1, 2).flatten(0, 1) for clips in (pixels, reconstruction))
    with torch.autocast(first.device.type, enabled=False):
        return network(first.float(), second.float())
