"""3-D convolutions, those that look back in time only, and what they remember between the chunks of one video.

A causal network reads the first frame alone and later frames in groups, so images are videos of one frame. Processed
in chunks with a ``Stream`` that remembers the tail of each layer's input, a video of any length gives what it gives
in one piece, in the memory of one chunk. A layer keeps k + mT - s floor(mT / s + 1) of its input frames after frame 0
and m chunks of T frames, for a kernel of k frames and a stride of s (Open-Sora Plan report, arXiv 2412.00131, eq. 5).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from typing_extensions import override


class Stream:
    """The state of one video that passes through causal layers chunk by chunk.

    Attributes:
        first: the chunk under way begins the video.
        last: no chunk follows, so layers that wait for later frames give what they hold.
    """

    def __init__(self) -> None:
        self.first = True
        self.last = False
        self._memory: dict[nn.Module, Float[Tensor, "B C T H W"]] = {}

    def recall(self, layer: nn.Module) -> Float[Tensor, "B C T H W"] | None:
        """The frames a layer kept, None before its first chunk."""
        return self._memory.get(layer)

    def keep(self, layer: nn.Module, frames: Float[Tensor, "B C T H W"]) -> None:
        """Remember frames for a layer's next chunk; a copy, so that the chunk they are cut from can be freed."""
        if not self.last:
            self._memory[layer] = frames.clone()

    def held_values(self) -> int:
        """How many numbers are remembered."""
        return sum(frames.numel() for frames in self._memory.values())


def whole() -> Stream:
    """The stream of a video that comes in one piece; nothing is kept."""
    stream = Stream()
    stream.last = True
    return stream


class TrainedConv3d(nn.Conv3d):
    """``nn.Conv3d`` with right gradients on a CPU in bfloat16 and float16 too.

    There torch 2.13 gets the gradients of some weights wrong: larger kernels on one frame of 1, 3, 5 or 7 channels are
    off by more than their size, at times infinite, and kernels of 1x1x1 on 64 channels of 5 frames of 64 x 64 write
    past their memory. So trained kernels of 1x1x1, and those on one frame, compute in float32 there. The result has the
    type that it has otherwise.
    """

    @override
    def forward(self, input: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        low = input.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
        wrong = self.weight.requires_grad and (max(self.kernel_size) == 1 or input.shape[2] == 1)
        if not (low and wrong and torch.is_grad_enabled()):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(input.float(), self.weight.float(), bias).to(dtype)


class CausalConv3d(nn.Module):
    """A 3-D convolution whose output at a time depends on no later frame; MAGVIT-v2 (arXiv 2310.05737, section 3.2).

    Before the first frame stand k_t - 1 copies of it, or zeros. T frames give floor((T - 1) / s_t) + 1. In a stream it
    keeps as many frames as equation 5 of the Open-Sora Plan report (arXiv 2412.00131) says.

    Args:
        in_channels, out_channels: channels.
        kernel: size, of all axes or (frames, rows, columns).
        stride: step, of all axes or (frames, rows, columns); in time at most the kernel.
        padding: zeros on each spatial side.
        zeros_before: whether zeros stand before the first frame instead of its copies.

    Raises:
        ValueError: a temporal stride that skips frames.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int = 0,
        zeros_before: bool = False,
    ) -> None:
        super().__init__()
        self.zeros_before = zeros_before
        kernels, strides = _per_axis(kernel), _per_axis(stride)
        if not 1 <= strides[0] <= kernels[0]:
            raise ValueError(f"temporal stride {strides[0]} must be 1 to {kernels[0]}, the kernel's frames")
        self.conv = TrainedConv3d(in_channels, out_channels, kernels, strides, (0, padding, padding))

    def forward(self, x: Float[Tensor, "B C T H W"], stream: Stream) -> Float[Tensor, "B D t h w"]:
        """Every output whose input is complete; it may be none."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        before = stream.recall(self)
        if before is None:
            before = x[:, :, :1].expand(-1, -1, kernel - 1, -1, -1)  # (B, C, k_t - 1, H, W)
            before = torch.zeros_like(before) if self.zeros_before else before
        x = torch.cat([before, x], dim=2) if kernel > 1 else x  # (B, C, kept + T, H, W)
        outputs = max((x.shape[2] - kernel) // stride + 1, 0)
        stream.keep(self, x[:, :, outputs * stride :])
        if outputs:
            return self.conv(x)
        return self.conv(pad(x, (0, 0, 0, 0, 0, kernel - x.shape[2])))[:, :, :0]


def _per_axis(size: int | Sequence[int]) -> tuple[int, int, int]:
    frames, rows, columns = (size,) * 3 if isinstance(size, int) else size
    return frames, rows, columns


class CausalSequential(nn.Sequential):
    """Layers in a row that each take (frames, stream)."""

    def forward(self, x: Float[Tensor, "B C T H W"], stream: Stream) -> Float[Tensor, "B D t h w"]:  # type: ignore[override]
        """Through all of them."""
        for layer in self:
            x = layer(x, stream)
        return x


class CausalUpsample(nn.Module):
    """Twice as many frames by linear interpolation, except the first, which stays single: 1 + n frames give 1 + 2n.

    Between neighbors a, b of the later frames stand (3a + b) / 4 and (a + 3b) / 4, and the ends are repeated: what
    ``interpolate(scale_factor=2, mode="linear", align_corners=False)`` gives. An output needs the frame after it,
    so in a stream one output waits for the next chunk.
    """

    def forward(self, x: Float[Tensor, "B C T H W"], stream: Stream) -> Float[Tensor, "B C t H W"]:
        """The frames that can be known by now; with none given, those that still waited."""
        parts = []
        if stream.first:
            parts, x = [x[:, :, :1]], x[:, :, 1:]
        before = stream.recall(self)
        if before is None:
            parts.append(x[:, :, :1])
        else:
            x = torch.cat([before, x], dim=2)
        if not x.shape[2]:
            return torch.cat(parts, dim=2)
        a, b = x[:, :, :-1], x[:, :, 1:]  # (B, C, n - 1, H, W) each
        parts.append(torch.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], dim=3).flatten(2, 3))
        stream.keep(self, x[:, :, -1:])
        return torch.cat([*parts, x[:, :, -1:]] if stream.last else parts, dim=2)
