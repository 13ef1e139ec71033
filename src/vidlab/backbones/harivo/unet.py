"""Stable Diffusion's UNet on the frames of clips, walked pair by pair so that layers of others can stand between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.backbones.harivo.temporal import group_count
from vidlab.clip import DenoiserInput
from vidlab.errors import UserError
from vidlab.layers.kernels import auto

# Widths of the four levels over that of the first.
LEVELS = (1, 2, 4, 4)
# Added to the attention score of a padded token.
HIDDEN = -10000.0
# Settings of UNet2DConditionModel that Stable Diffusion 1 and 2 leave as they are: others compute something else.
PLAIN: dict[str, Any] = {
    "addition_embed_type": None, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "center_input_sample": False, "time_embedding_type": "positional",
    "time_cond_proj_dim": None, "timestep_post_act": None, "time_embedding_act_fn": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "addition_time_embed_dim": None,
}  # fmt: skip


def small_config(channels: int, text_width: int, width: int, depth: int, heads: int) -> dict[str, Any]:
    """The configuration of a UNet in the shape of Stable Diffusion 1.5, which has width 320, depth 2 and 8 heads.

    Args:
        channels: of the latents, 4 there.
        text_width: width of text tokens, 768 there.
        width: channels of the first of four levels.
        depth: residual blocks to a level.
        heads: attention heads at every level.

    Raises:
        UserError: a width that its heads do not divide.
    """
    if min(width, depth, heads) < 1 or width % heads:
        raise UserError(
            f"model.backbone.width={width}, depth={depth}, heads={heads}: all positive, and heads divide width."
        )
    return {
        "in_channels": channels, "out_channels": channels, "cross_attention_dim": text_width, "layers_per_block": depth,
        "block_out_channels": tuple(width * level for level in LEVELS), "attention_head_dim": heads,
        "norm_num_groups": group_count(width),
    }  # fmt: skip


def make_unet(config: dict[str, Any]) -> Any:
    """A UNet2DConditionModel of diffusers with new weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def check_unet(config: dict[str, Any], channels: int, text_width: int, origin: str) -> None:
    """Refuse a UNet that is no image model of these latents and this text.

    Args:
        config: of the UNet.
        channels: of the latents.
        text_width: width of text tokens.
        origin: where it comes from, for messages.

    Raises:
        UserError: naming what differs and what to do.
    """
    for name, plain in PLAIN.items():
        if config.get(name, plain) != plain:
            raise UserError(f"{origin}: {name}={config[name]} is not of Stable Diffusion 1 or 2, which alone are read.")
    if config["in_channels"] != channels or config["out_channels"] != channels:
        raise UserError(
            f"{origin} is a UNet of {config['in_channels']} channels of latents and predicts {config['out_channels']}; "
            f"the autoencoder gives {channels}. Use the autoencoder it was trained with (Stable Diffusion: "
            "autoencoder=image_vae autoencoder.path=FOLDER)."
        )
    if config["cross_attention_dim"] != text_width:
        raise UserError(
            f"{origin} reads text of width {config['cross_attention_dim']}, and the text encoder gives {text_width}. "
            "Use the one it was trained with (Stable Diffusion: text_encoder=transformers "
            "text_encoder.path=FOLDER/text_encoder)."
        )


class RecordedAttention:
    """Self-attention of diffusers that hands out its queries and keys when it is asked to."""

    def __init__(self) -> None:
        self.found: list[Tensor] | None = None

    def __call__(self, attention: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attention among the places of each frame."""
        heads = attention.heads
        parts = (attention.to_q, attention.to_k, attention.to_v)
        q, k, v = (part(hidden_states).unflatten(-1, (heads, -1)) for part in parts)  # (BT, L, N, d) each
        if self.found is not None:
            self.found.append(torch.stack([q, k], dim=1).transpose(2, 3))  # (BT, 2, N, L, d)
        mixed = auto(q, k, v).flatten(2)  # (BT, L, N d)
        out: Tensor = attention.to_out[1](attention.to_out[0](mixed))
        return out


def decoder_self_attention(body: Any) -> list[Any]:
    """The self-attention layers of the decoder in the order they run: nine in Stable Diffusion."""
    blocks = [block for block in body.up_blocks if getattr(block, "has_cross_attention", False)]
    return [layer.transformer_blocks[0].attn1 for block in blocks for layer in block.attentions]


def record_attention(body: Any) -> None:
    """Let the decoder's self-attention hand out queries and keys when asked."""
    for attention in decoder_self_attention(body):
        attention.set_processor(RecordedAttention())


def text_of(input: DenoiserInput, width: int) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B 1 S"]]:
    """Text tokens, zero where padded, and the bias of attention to them; without text one token of zeros."""
    latents = input.latents
    if input.text is None:
        return latents.new_zeros(len(latents), 1, width), latents.new_zeros(len(latents), 1, 1)
    mask = input.text.mask
    tokens = input.text.tokens.masked_fill(~mask[..., None], 0.0)
    return tokens, torch.where(mask, 0.0, HIDDEN).to(tokens.dtype)[:, None]


def frames_of(latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "BT C H W"]:
    """The frames of clips one after another."""
    return latents.transpose(1, 2).flatten(0, 1)


def clips_of(frames: Float[Tensor, "BT C H W"], count: int) -> Float[Tensor, "B C T H W"]:
    """Frames as clips of ``count`` of them."""
    return frames.unflatten(0, (-1, count)).transpose(1, 2)


def frame_levels(input: DenoiserInput) -> Float[Tensor, "BT"]:
    """The number that is embedded for each frame's noise level."""
    level, frames = input.embedded_t, input.latents.shape[2]
    return (level[:, None].expand(-1, frames) if level.ndim == 1 else level).flatten()


def _as_is(place: str, x: Tensor) -> Tensor:
    return x


def _plainly(block: Callable[..., Any], *inputs: Any) -> Any:
    return block(*inputs)


@dataclass
class FramePass:
    """One pass of the UNet over frames.

    Args:
        levels: numbers that are embedded for noise levels.
        text: tokens that each frame attends to.
        bias: of the attention to them.
        between: applied after each pair of a residual block and attention, with the name of its place: ``down_0_1``,
            ``mid``, ``up_3_2``.
        run: applies a block to inputs; may recompute it in the backward pass.
        extra: added to what the first convolution gives.
        wanted: whether to keep queries and keys.
        added: to what is skipped to the decoder, and last to what the middle gives; None for nothing.
        image_tokens: tokens of a picture that an IP-Adapter's attention reads beside the text.

    Attributes:
        attention: queries and keys of the decoder's self-attention, (BT, 2, N, L, d) for each layer.
        h_space: what the middle of the UNet gives.
    """

    levels: Float[Tensor, "BT"]
    text: Float[Tensor, "BT S D"]
    bias: Float[Tensor, "BT 1 S"]
    between: Callable[[str, Tensor], Tensor] = _as_is
    run: Callable[..., Any] = _plainly
    extra: Tensor | None = None
    wanted: bool = False
    added: Sequence[Tensor] | None = None
    image_tokens: Float[Tensor, "BT I D"] | None = None
    attention: list[Tensor] = field(default_factory=list)
    h_space: Tensor | None = None

    def __call__(self, body: Any, frames: Float[Tensor, "BT C H W"]) -> Float[Tensor, "BT C H W"]:
        """What UNet2DConditionModel computes of the frames."""
        skips, x, time = self.encoded(body, frames)
        self.h_space = x
        if self.added is not None:
            skips = [skip + more for skip, more in zip(skips, self.added[:-1], strict=True)]
            x = x + self.added[-1]
        for level, block in enumerate(body.up_blocks):
            for place, resnet in enumerate(block.resnets):
                x = self._pair(block, place, resnet, torch.cat([x, skips.pop()], dim=1), time)
                x = self.between(f"up_{level}_{place}", x)
            for layer in block.upsamplers or ():
                x = layer(x, skips[-1].shape[-2:])  # sizes that do not halve evenly come back as they were
        out: Tensor = body.conv_out(body.conv_act(body.conv_norm_out(x)))
        return out

    def encoded(self, body: Any, frames: Float[Tensor, "BT C H W"]) -> tuple[list[Tensor], Tensor, Tensor]:
        """The first half, of a UNet or of a ControlNet: what is skipped to the decoder, the middle, and the levels."""
        dtype = body.conv_in.weight.dtype
        time = body.time_embedding(body.time_proj(self.levels).to(dtype))
        self.text, self.bias = self.text.to(dtype), self.bias.to(dtype)
        x = body.conv_in(frames.to(dtype))
        x = x if self.extra is None else x + self.extra.to(x.dtype)
        skips = [x]
        for level, block in enumerate(body.down_blocks):
            for place, resnet in enumerate(block.resnets):
                x = self._pair(block, place, resnet, x, time)
                x = self.between(f"down_{level}_{place}", x)
                skips.append(x)
            for layer in block.downsamplers or ():
                x = layer(x)
                skips.append(x)
        return skips, self._middle(body.mid_block, x, time), time

    def _pair(self, block: Any, place: int, resnet: Any, x: Tensor, time: Tensor) -> Tensor:
        x = self.run(resnet, x, time)
        layers = getattr(block, "attentions", None)
        return x if layers is None else self._attend(layers[place], x)

    def _attend(self, layer: Any, x: Tensor) -> Tensor:
        recorder = layer.transformer_blocks[0].attn1.processor
        recorded = self.wanted and isinstance(recorder, RecordedAttention)

        read: Any = self.text if self.image_tokens is None else (self.text, [self.image_tokens.to(self.text.dtype)])

        def attend(x: Tensor) -> tuple[Tensor, ...]:  # what is kept leaves through the door, for recomputation
            if not recorded:
                return (layer(x, read, encoder_attention_mask=self.bias, return_dict=False)[0],)
            recorder.found = []
            try:
                out = layer(x, read, encoder_attention_mask=self.bias, return_dict=False)[0]
                return (out, *recorder.found)
            finally:
                recorder.found = None

        x, *kept = self.run(attend, x)
        self.attention += kept
        return x

    def _middle(self, block: Any, x: Tensor, time: Tensor) -> Tensor:
        x = self.run(block.resnets[0], x, time)
        for layer, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self.between("mid", self._attend(layer, x))
            x = self.run(resnet, x, time)
        return x


def places(body: Any, parts: Sequence[str]) -> dict[str, int]:
    """Channels at every place between pairs, for parts out of ``down``, ``mid`` and ``up``."""
    found: dict[str, int] = {}
    for part, blocks in (("down", body.down_blocks), ("up", body.up_blocks)):
        if part in parts:
            found |= {
                f"{part}_{level}_{place}": resnet.out_channels
                for level, block in enumerate(blocks)
                for place, resnet in enumerate(block.resnets)
            }
    return found | ({"mid": body.mid_block.resnets[0].out_channels} if "mid" in parts else {})


class FrameControls(nn.Module):
    """Control channels of each frame, added to the UNet's first features through a convolution that starts at zero."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, channels: Float[Tensor, "B K T H W"]) -> Float[Tensor, "BT D H W"]:
        """What is added."""
        out: Tensor = self.conv(frames_of(channels).to(self.conv.weight.dtype))
        return out
