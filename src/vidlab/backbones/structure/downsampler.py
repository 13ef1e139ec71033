"""A tiny 3-D convolution network from the size of the pixels to that of the latents."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.clip import Stride


class SignalDownsampler(nn.Module):
    """Brings signals of structure to the shape of the latents (Open-Sora Plan, section 2.3.2, eq. 12).

    The paper says no more than that it is tiny. Here: a convolution of kernel 3 for each prime factor of the strides,
    with SiLU between them, and one to as many channels as the latents have.

    Args:
        channels: of the signals.
        latent_channels: of the latents.
        stride: pixels to a latent position. Where the first frame stands alone, it is repeated in front as often as
            a latent frame asks for.
        width: channels behind the first convolution, doubled by each further one up to four times as many.
    """

    def __init__(self, channels: int, latent_channels: int, stride: Stride, width: int = 16) -> None:
        super().__init__()
        self.stride = stride
        factors = [prime_factors(step) for step in (stride.frames, stride.height, stride.width)]
        steps = [(t, h, w) for t, h, w in zip_longest(*factors, fillvalue=1)]
        widths = [channels, *(width * min(2**n, 4) for n in range(len(steps)))]
        self.stages = nn.ModuleList(
            nn.Conv3d(before, after, 3, step, padding=1)
            for before, after, step in zip(widths, widths[1:], steps, strict=False)
        )
        self.out = nn.Conv3d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, maps: Float[Tensor, "B K T H W"], size: Sequence[int]) -> Float[Tensor, "B C t h w"]:
        """Features at the latents' (frames, rows, columns).

        Raises:
            ValueError: signals larger than such latents stand for.
        """
        steps = (self.stride.frames, self.stride.height, self.stride.width)
        if self.stride.first_frame_alone:
            maps = torch.cat([maps[:, :, :1].repeat_interleave(steps[0] - 1, dim=2), maps], dim=2)
        missing = [n * step - have for n, step, have in zip(size, steps, maps.shape[2:], strict=True)]
        if min(missing) < 0:
            raise ValueError(f"signals of {tuple(maps.shape[2:])} for latents of {tuple(size)} with strides of {steps}")
        x = F.pad(maps, [amount for gap in reversed(missing) for amount in (0, gap)])  # an autoencoder that pads
        kind = maps.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            for stage in self.stages:
                x = F.silu(_precise(stage, x))
            return _precise(self.out, x)


def _precise(layer: nn.Module, x: Float[Tensor, "B K T H W"]) -> Float[Tensor, "B J t h w"]:
    """In float32 at least: in bfloat16 some gradients are wrong on CPUs, as ``layers.causal.TrainedConv3d`` says."""
    assert isinstance(layer, nn.Conv3d) and layer.bias is not None
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return F.conv3d(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype), layer.stride, layer.padding)


def prime_factors(number: int) -> list[int]:
    """In rising order; none of 1."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found
