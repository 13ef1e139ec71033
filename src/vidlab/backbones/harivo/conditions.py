"""What HARIVO adds around the frozen UNet: the mapping network before it, and tokens of every frame beside the text."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.backbones.harivo.temporal import TemporalAttention
from vidlab.layers.attention import zero_init

# Of the mapping network's attention, as in the paper's listing.
MAPPING_HEADS, MAPPING_HEAD_DIM = 8, 64


def zero_conv(conv: nn.Conv1d | nn.Conv2d) -> None:
    """Set a convolution to zero, so that its branch adds nothing at first."""
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


class MappingLayer(nn.Module):
    """Moves noisy latents of a clip to where the image model expects those of single frames (the paper's section 3.2).

    ``y = x + r + out(attention(norm(r)))`` with ``r = conv(x)``, all along frames. The listing names a residual
    convolution; here it is only the branch, and its last kernel starts at zero like ``out``, so that a new layer
    returns exactly what it is given: with a residual of its own it would double the latents.

    Args:
        channels: C of the latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv1d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Conv1d(channels, channels, 3, padding=1), nn.SiLU(), last)
        self.attention = TemporalAttention(channels, MAPPING_HEADS, MAPPING_HEAD_DIM, positions=False)
        self.out = nn.Linear(channels, channels)
        zero_conv(last)
        zero_init(self.out)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """The latents, moved."""
        batch, channels, frames, height, width = x.shape
        places = x.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B H W, C, T)
        r = self.conv(places)  # (B H W, C, T)
        r = r + self.out(self.attention(r.transpose(1, 2))).transpose(1, 2)
        return x + r.view(batch, height, width, channels, frames).permute(0, 3, 4, 1, 2)  # (B, C, T, H, W)


class FrameTokens(nn.Module):
    """K tokens for each of F frames, made of the text (the paper's section 3.5).

    Text tokens are the channels of a convolution of kernel 1, so their number is fixed: captions are padded with zeros
    to it, and what lies beyond is not read. Clips shorter than F take the first frames' tokens; of longer ones each
    frame takes those between its neighbors.

    Args:
        width: D of the text.
        text_tokens: M.
        frames: F.
        count: K.
    """

    def __init__(self, width: int, text_tokens: int, frames: int, count: int) -> None:
        super().__init__()
        self.text_tokens, self.frames, self.count = text_tokens, frames, count
        self.into = nn.Linear(width, width)
        self.mix = nn.Conv1d(text_tokens, count * frames, 1, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, text: Float[Tensor, "B S D"], frames: int) -> Float[Tensor, "B T K D"]:
        """Tokens of ``frames`` frames; padding of the text must be zero."""
        text = text[:, : self.text_tokens]
        text = F.pad(text, (0, 0, 0, self.text_tokens - text.shape[1]))  # (B, M, D)
        tokens = F.silu(self.mix(F.silu(F.silu(self.into(text)))))  # (B, F K, D)
        for layer in self.layers:
            tokens = F.silu(layer(tokens))
        tokens = tokens.unflatten(1, (self.frames, self.count))  # (B, F, K, D)
        if frames <= self.frames:
            return tokens[:, :frames]
        along = tokens.flatten(2).transpose(1, 2)  # (B, K D, F)
        longer = F.interpolate(along, frames, mode="linear", align_corners=True)  # (B, K D, T)
        return longer.transpose(1, 2).unflatten(2, (self.count, -1))  # (B, T, K, D)


def with_frame_tokens(
    text: Float[Tensor, "B S D"], bias: Float[Tensor, "B 1 S"], tokens: Float[Tensor, "B T K D"]
) -> tuple[Float[Tensor, "BT R D"], Float[Tensor, "BT 1 R"]]:
    """The text of each frame followed by the frame's tokens, with the bias of attention to them."""
    frames, count = tokens.shape[1:3]
    repeated = text[:, None].expand(-1, frames, -1, -1)  # (B, T, S, D)
    seen = torch.zeros(len(text), frames, 1, count, dtype=bias.dtype, device=bias.device)
    both = torch.cat([bias[:, None].expand(-1, frames, -1, -1), seen], dim=-1)  # (B, T, 1, S + K)
    return torch.cat([repeated, tokens.to(text.dtype)], dim=2).flatten(0, 1), both.flatten(0, 1)
