"""I3D trained on Kinetics-400, the feature network of FVD (Carreira and Zisserman 2017, arXiv:1705.07750, figure 3).

The network and its numbers are those of the TF-Hub module that FVD was defined with: TensorFlow's SAME padding,
BatchNorm without scale and with epsilon 1e-3, and 400 logits. It differs from the released kinetics-i3d checkpoints.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.perceptual.weights import load_weights, take

CLASSES = 400
MIN_FRAMES = 9
MIN_SIZE = 193
_EPSILON = 1e-3
# Output channels of an inception block: 1x1, 1x1 then 3x3, 1x1 then 3x3, pool then 1x1 (figure 3).
_BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# The pools that come before a block: kernel and stride.
_POOLS = {
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis under TensorFlow's SAME padding; an odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The input padded where sides differ, and the padding to leave to the operation itself."""
    pads = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    if all(before == after for before, after in pads):
        return x, tuple(before for before, _ in pads)
    return F.pad(x, [p for pair in reversed(pads) for p in pair]), (0, 0, 0)


class _Conv(nn.Conv3d):
    """Convolution with SAME padding, into whose bias BatchNorm is folded."""

    def forward(self, x: Tensor) -> Tensor:
        x, padding = _pad_same(x, self.kernel_size, self.stride)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding)


def _max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    # Every input of a pool comes from a ReLU, so padding with zeros is padding with minus infinity.
    x, padding = _pad_same(x, kernel, stride)
    return F.max_pool3d(x, kernel, stride, padding)


class _Block(nn.Module):
    """Four branches; the three 1x1x1 convolutions that read the same input are one."""

    def __init__(self, channels: int, sizes: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        plain, narrow_1, wide_1, narrow_2, wide_2, pooled = sizes
        self.split = [plain, narrow_1, narrow_2]
        self.entry = _Conv(channels, sum(self.split), 1)
        self.wide_1 = _Conv(narrow_1, wide_1, 3)
        self.wide_2 = _Conv(narrow_2, wide_2, 3)
        self.pooled = _Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        plain, narrow_1, narrow_2 = F.relu_(self.entry(x)).split(self.split, dim=1)
        pooled = self.pooled(_max_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([plain, *map(F.relu_, (self.wide_1(narrow_1), self.wide_2(narrow_2), pooled))], dim=1)


class I3D(nn.Module):
    """I3D with random weights, frozen and in evaluation mode; ``load_i3d`` gives the trained one.

    Clips (B, 3, T, H, W) in [-1, 1], with at least 9 frames of at least 193 x 193 pixels (224 x 224 in training),
    to 400 logits (B, 400), before the softmax, averaged over time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _Conv(3, 64, 7, stride=2)
        self.second = _Conv(64, 64, 1)
        self.third = _Conv(64, 192, 3)
        channels = 192
        self.blocks = nn.ModuleDict()
        for name, sizes in _BLOCKS.items():
            self.blocks[name] = _Block(channels, sizes)
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.logits = nn.Conv3d(channels, CLASSES, 1)
        self.eval().requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "I3D":
        return super().train(False)  # frozen

    def forward(self, videos: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 400"]:
        """Logits, in the precision of the weights.

        Raises:
            UserError: clips with fewer frames or pixels than the network reads.
        """
        frames, *size = videos.shape[2:]
        if frames < MIN_FRAMES or min(size) < MIN_SIZE:
            raise UserError(
                f"I3D reads clips of at least {MIN_FRAMES} frames and {MIN_SIZE} x {MIN_SIZE} pixels, "
                f"these have {frames} frames of {size[0]} x {size[1]}."
            )
        x = videos.to(self.first.weight.dtype)
        x = F.relu_(self.first(x))  # (B, 64, T / 2, H / 2, W / 2)
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = F.relu_(self.third(F.relu_(self.second(x))))  # (B, 192, T / 2, H / 4, W / 4)
        for name, block in self.blocks.items():
            if name in _POOLS:
                x = _max_pool(x, *_POOLS[name])
            x = block(x)
        # (B, 1024, T / 8, H / 32, W / 32). The classifier is linear, so it may follow the average over time.
        x = F.avg_pool3d(x, (2, 7, 7), 1).mean(2, keepdim=True)  # (B, 1024, 1, h, w)
        return self.logits(x).mean((3, 4)).squeeze(2)  # (B, 400)


def load_i3d(weights: str = "asset:i3d-kinetics-400.ckpt") -> I3D:
    """I3D with trained weights: ``asset:i3d-kinetics-400.ckpt`` or a local copy of it (``.ckpt``, ``.safetensors``).

    Raises:
        AssetError: the pinned file could not be fetched.
        UserError: there is no such file, or it holds other weights.
    """
    found, model = load_weights(weights), I3D()
    for module, name in ((model.first, "1a_7x7"), (model.second, "2b_1x1"), (model.third, "2c_3x3")):
        _set(module, [_folded(found, f"Conv3d_{name}", module, weights)])
    for block_name, block in model.blocks.items():
        assert isinstance(block, _Block)
        parts = zip(
            ("Branch_0/Conv3d_0a_1x1", "Branch_1/Conv3d_0a_1x1", "Branch_2/Conv3d_0a_1x1"), block.split, strict=True
        )
        _set(block.entry, [_folded(found, f"{block_name}/{name}", block.entry, weights, n) for name, n in parts])
        for conv, name in ((block.wide_1, "1/Conv3d_0b_3x3"), (block.wide_2, "2/Conv3d_0b_3x3")):
            _set(conv, [_folded(found, f"{block_name}/Branch_{name}", conv, weights)])
        _set(block.pooled, [_folded(found, f"{block_name}/Branch_3/Conv3d_0b_1x1", block.pooled, weights)])
    name = "params/Logits/Conv3d_0c_1x1/Conv_0"
    kernel = take(found, f"{name}/kernel", (1, 1, 1, model.logits.in_channels, CLASSES), weights)
    _set(model.logits, [(kernel.permute(4, 3, 0, 1, 2), take(found, f"{name}/bias", (CLASSES,), weights))])
    return model


def _folded(
    found: dict[str, Tensor], name: str, conv: nn.Conv3d, source: str, channels: int | None = None
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution and the BatchNorm after it."""
    out = channels or conv.out_channels
    kernel = take(found, f"params/{name}/Conv_0/kernel", (*conv.kernel_size, conv.in_channels, out), source)
    shift = take(found, f"params/{name}/BatchNorm_0/bias", (out,), source)
    mean, var = (take(found, f"batch_stats/{name}/BatchNorm_0/{n}", (1, 1, 1, 1, out), source) for n in ("mean", "var"))
    scale = (var.double().flatten() + _EPSILON).rsqrt()
    weight = kernel.permute(4, 3, 0, 1, 2).double() * scale.view(-1, 1, 1, 1, 1)
    return weight.float(), (shift.double() - mean.double().flatten() * scale).float()


def _set(conv: nn.Conv3d, parts: list[tuple[Tensor, Tensor]]) -> None:
    assert conv.bias is not None
    conv.weight.data = torch.cat([weight for weight, _ in parts]).contiguous()
    conv.bias.data = torch.cat([bias for _, bias in parts]).contiguous()
