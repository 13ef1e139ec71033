"""LPIPS, the learned perceptual distance of two images (Zhang et al. 2018, arXiv:1801.03924, equation 1)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.perceptual.weights import load_weights, take

Net = Literal["alex", "vgg"]
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Convolutions as (channels, kernel, stride, padding) and pools as (kernel, stride); features leave after the
# convolutions marked True.
_LAYERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "alex": ((64, 11, 4, 2, True), (3, 2), (192, 5, 1, 2, True), (3, 2), (384, 3, 1, 1, True), (256, 3, 1, 1, True),
             (256, 3, 1, 1, True)),
    "vgg": ((64, 3, 1, 1, False), (64, 3, 1, 1, True), (2, 2), (128, 3, 1, 1, False), (128, 3, 1, 1, True), (2, 2),
            *[(256, 3, 1, 1, last) for last in (False, False, True)], (2, 2),
            *[(512, 3, 1, 1, last) for last in (False, False, True)], (2, 2),
            *[(512, 3, 1, 1, last) for last in (False, False, True)]),
}  # fmt: skip
_PUBLISHED = {"alex": ("AlexNet_0", "asset:lpips-alexnet.ckpt"), "vgg": ("VGG16_0", "asset:lpips-vgg16.ckpt")}
_MIN_SIZE = {"alex": 31, "vgg": 16}  # smaller images leave some pool nothing to read


class LPIPS(nn.Module):
    """LPIPS (version 0.1, with linear heads) with random weights; ``load_lpips`` gives the trained one.

    The distance of two images is the sum over five layers of the spatial mean of the weighted squared difference of
    their features, each position's features scaled to length 1. Frozen weights; gradients reach the images.

    Args:
        net: the trunk, ``alex`` (the usual choice for evaluation) or ``vgg`` (for losses). Their values are on
            different scales.

    Raises:
        UserError: an unknown trunk.
    """

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in _LAYERS:
            raise UserError(f"net={net}: LPIPS knows {' and '.join(_LAYERS)}.")
        self.net = net
        self.least_side = _MIN_SIZE[net]
        self.convs, self.heads = nn.ModuleList(), nn.ParameterList()
        channels = 3
        for layer in _LAYERS[net]:
            if len(layer) == 2:
                continue
            out, kernel, stride, padding, is_tap = layer
            self.convs.append(nn.Conv2d(channels, out, kernel, stride, padding))
            channels = out
            if is_tap:
                self.heads.append(nn.Parameter(torch.rand(out) / out))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)  # frozen

    def features(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The five taps, each (B, C_l, H_l, W_l), of images in [-1, 1]; not yet normalized.

        Raises:
            UserError: images smaller than the trunk reads.
        """
        if min(images.shape[2:]) < _MIN_SIZE[self.net]:
            raise UserError(
                f"LPIPS ({self.net}) reads images of at least {_MIN_SIZE[self.net]} pixels a side, these have "
                f"{images.shape[2]} x {images.shape[3]}. Resize them first."
            )
        assert isinstance(self.shift, Tensor) and isinstance(self.scale, Tensor)
        x = (images.float() - self.shift) / self.scale
        convs, taps = iter(self.convs), []
        for layer in _LAYERS[self.net]:
            if len(layer) == 2:
                x = F.max_pool2d(x, layer[0], layer[1])
                continue
            x = F.relu(next(convs)(x))
            if layer[-1]:
                taps.append(x)
        return taps

    def forward(self, first: Float[Tensor, "B 3 H W"], second: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distances >= 0 of images in [-1, 1], pair by pair; 0 for equal images."""
        total = torch.zeros(len(first), device=first.device)  # equation 1, a layer l at a time
        pairs = zip(self.features(first), self.features(second), self.heads, strict=True)
        for a, b, head in pairs:
            difference = (unit_length(a) - unit_length(b)).square()  # (B, C_l, H_l, W_l)
            total = total + (difference * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))  # (B,)
        return total


def unit_length(features: Float[Tensor, "B C H W"], epsilon: float = 1e-10) -> Float[Tensor, "B C H W"]:
    """Features scaled to length 1 along the channels of each position; all zeros stay zeros."""
    # The square root of zero has no gradient; a denormal inside it does not change any float32 length.
    length = (features.square().sum(1, keepdim=True) + torch.finfo(torch.float32).tiny).sqrt()
    return features / (length + epsilon)


def load_lpips(net: Net = "alex", weights: str | None = None) -> LPIPS:
    """LPIPS with trained weights.

    Args:
        net: the trunk.
        weights: None for the pinned file of the trunk, or a local copy of it (``.ckpt``, ``.safetensors``).

    Raises:
        AssetError: the pinned file could not be fetched.
        UserError: there is no such file, or it holds other weights.
    """
    model = LPIPS(net)
    trunk, asset = _PUBLISHED[net]
    source = weights or asset
    found = load_weights(source)
    for number, conv in enumerate(model.convs):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        name, shape = f"{trunk}/Conv_{number}", (*conv.kernel_size, conv.in_channels, conv.out_channels)
        conv.weight.data = take(found, f"{name}/kernel", shape, source).permute(3, 2, 0, 1).contiguous()
        conv.bias.data = take(found, f"{name}/bias", (conv.out_channels,), source)
    for number, head in enumerate(model.heads):
        kernel = take(found, f"NetLinLayer_{number}/Conv_0/kernel", (1, 1, len(head), 1), source)
        head.data = kernel.flatten()
    return model
