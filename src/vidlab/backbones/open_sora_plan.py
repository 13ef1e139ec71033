"""The denoiser of Open-Sora Plan v1.3: a drop-in for its released text-to-video and image-to-video weights."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vidlab.backbones.base import BackboneSpec, BlockSpec, ReleasedWeights, split_controls
from vidlab.backbones.open_sora_plan_block import OpenSoraPlanBlock
from vidlab.backbones.open_sora_plan_config import (
    RELEASE,
    ReleasedArchitecture,
    check_config,
    model_settings,
    other_layouts,
    read_config,
)
from vidlab.backbones.open_sora_plan_release import export_release, load_release, read_release
from vidlab.backbones.sizes import check_sizes
from vidlab.backbones.watched import later_half, through_blocks
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape
from vidlab.features import SELF_ATTENTION
from vidlab.layers.attention import xavier_linears
from vidlab.layers.block import BlockContext
from vidlab.layers.compilation.blocks import any_length, no_view
from vidlab.layers.embeddings import sinusoidal
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Grid, LayerPlan
from vidlab.layers.modulation import modulate
from vidlab.layers.patches import patch_grid, patchify, per_token
from vidlab.layers.rope import rope_scales, rotation
from vidlab.layers.sequence_parallel.shares import SequenceLayers
from vidlab.layers.tables import Tables

FREQUENCIES = 256
# What the release calls the embeddings of its two controls; further ones are numbered.
CONTROL_NAMES = ("pos_embed_masked_hidden_states", "pos_embed_mask")


class PatchEmbed(nn.Module):
    """Patches to tokens by a convolution whose stride is its kernel: per frame, or 3-D where a patch has more frames.

    It is run as a product of patches and the flattened weight, which is the same map and faster on a CPU.
    """

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        p, q, r = patch
        self.proj = nn.Conv2d(channels, width, (q, r), (q, r)) if p == 1 else nn.Conv3d(channels, width, patch, patch)

    def reset_parameters(self) -> None:
        """Xavier-uniform as for the linear layer it is, and no bias."""
        nn.init.xavier_uniform_(self.proj.weight.view(self.proj.out_channels, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B L D"]:
        """One token per patch."""
        return F.linear(patchify(latents, self.patch), self.proj.weight.flatten(1), self.proj.bias)


class ControlEmbed(nn.Sequential):
    """Embeds one control like the latents; the linear behind it starts at zero."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__(PatchEmbed(channels, width, patch), nn.Linear(width, width, bias=False))

    def zero_output(self) -> None:
        """Set the linear to zero."""
        nn.init.zeros_(self.get_parameter("1.weight"))


class TimestepMLP(nn.Module):
    """256 sinusoids of the timestep, cosines first, through linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t D"]:
        """One vector per timestep."""
        waves = sinusoidal(t, FREQUENCIES).to(self.linear_1.weight.dtype)  # weights may be kept in bfloat16
        return self.linear_2(F.silu(self.linear_1(waves)))


class TimestepEmbedding(nn.Module):
    """The level of naming between the modulation and its perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepMLP(width)


class AdaLayerNormSingle(nn.Module):
    """adaLN-single (PixArt-alpha, section 2.3): one modulation of all blocks, from the timestep alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedding(width)
        self.linear = nn.Linear(width, 6 * width)

    def embed(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t D"]:
        """The embedded timestep."""
        return self.emb.timestep_embedder(t)

    def forward(self, embedded: Float[Tensor, "B #L D"]) -> Float[Tensor, "B #L six_D"]:
        """Shift, scale, gate of the self-attention, then of the feed-forward."""
        return self.linear(F.silu(embedded))


class CaptionProjection(nn.Module):
    """Text features to D: linear, tanh-approximated GELU, linear."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B S K"]) -> Float[Tensor, "B S D"]:
        """Projected text tokens."""
        return self.linear_2(F.gelu(self.linear_1(tokens), approximate="tanh"))


class OpenSoraPlan(ReleasedArchitecture):
    """Open-Sora Plan v1.3 (arXiv 2412.00131): adaLN-single blocks, Skiparse attention, 3-D rotary positions (eq. 6, 7).

    Parameters have the names and shapes of the released checkpoints, so those load strictly. The published model is
    32 layers of 2304 with 24 heads, patches of 1x2x2, 8 latent channels, 4096-wide text; layouts full in layers
    0, 1, 30, 31, single skip in even and group skip in odd layers between (k = 4).

    A new model starts as the original: Xavier linears, small normal timestep and caption perceptrons, random tables.
    Despite the report's "adaLN-Zero" neither modulation nor head starts at zero, so a new model does answer.
    The pooled text is not used. Dropping the text (``input.text is None``) skips cross-attention.

    Image conditioning (``control_channels=(8, 4)``: latents of the masked video, and the mask at latent resolution,
    1 where nothing is known) embeds each part like the latents and adds it through a bias-free linear that starts at
    zero: weights of the text-to-video model give exactly its answers in a new image-conditioned one.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens.
        layouts: token layout of each layer.
        width: D.
        depth: number of blocks.
        heads: attention heads; ``width / heads`` is a multiple of 6, two halves on each of three axes.
        patch: (frames, rows, columns) of latents in one token; the release has one frame.
        rope_base: base of the rotary frequencies.
        rope_scale: (frames, rows, columns) by which positions are divided.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
        attention: attention kernel: auto, sdpa, xformers or flex.
        control_channels: channels of each part of the controls.

    Raises:
        UserError: sizes that do not divide or are not positive.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        layouts: LayerPlan,
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        rope_base: float = 10000.0,
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_sizes(latent, width, depth, heads, patch, multiple=6)
        self.latent_channels, self.text_width, self.width, self.heads = latent.channels, text_width, width, heads
        frames, rows, columns = patch
        self.patch, self.control_channels = (frames, rows, columns), tuple(control_channels)
        self.spec = BackboneSpec(
            patch=self.patch, reads_controls=True, control_channels=self.control_channels, takes_attention=True,
            reads_pooled_text=False, hidden_matrices=("transformer_blocks.*",), released_as=RELEASE,
            blocks=BlockSpec(depth, width, heads),
            shares_sequence=True,
        )  # fmt: skip
        self.tables = Tables()
        self.rope_base = rope_base
        self.rope_scale = rope_scales(rope_scale)
        self.activation_checkpointing = activation_checkpointing
        kernel = attention_kernel(attention)
        self.watched = later_half([n for n, layout in enumerate(layouts.layers(depth)) if layout.sees_frame])
        self.spec = replace(self.spec, features=frozenset({SELF_ATTENTION} if self.watched else ()))
        self.pos_embed = PatchEmbed(latent.channels, width, self.patch)
        self.control_names = control_names(len(self.control_channels))
        for name, channels in zip(self.control_names, self.control_channels, strict=True):
            self.add_module(name, ControlEmbed(channels, width, self.patch))
        self.caption_projection = CaptionProjection(text_width, width)
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.ModuleList(
            OpenSoraPlanBlock(width, heads, layout, kernel) for layout in layouts.layers(depth)
        )
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, math.prod(patch) * latent.channels)
        self.reset_parameters()

    @classmethod
    def released(
        cls,
        folder: str | Path,
        latent: LatentShape,
        attention: str = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "OpenSoraPlan":
        """The denoiser of a released folder, of the sizes its ``config.json`` names, in evaluation mode.

        Args:
            folder: with ``config.json`` and weights.
            latent: shape of the latents it will be used for.
            attention: attention kernel: auto, sdpa, xformers or flex.
            dtype: of the weights; None keeps what is stored.
            device: where the weights are read to.

        Raises:
            UserError: as ``read_config`` and ``load_release``.
        """
        settings = model_settings(read_config(folder))
        with torch.device("meta"):
            model = cls(latent, attention=attention, **settings)
        load_release(model, folder, dtype, device)
        return model.eval().requires_grad_(False)

    @override
    def sequence_layers(self) -> SequenceLayers:
        layouts = tuple(block.layout for block in self.transformer_blocks if isinstance(block, OpenSoraPlanBlock))
        return SequenceLayers(layouts, self.heads, self.width)

    @override
    def write_released(self, folder: Path) -> None:
        export_release(self, folder)

    @override
    def read_released(self, folder: Path) -> ReleasedWeights:
        check_config(self, folder)
        weights, differing = read_release(folder), other_layouts(self, folder)
        return ReleasedWeights(weights, (f"{differing}: training adapts the weights to it",) if differing else ())

    def reset_parameters(self) -> None:
        """The original's start; see the class."""
        xavier_linears(self)
        for module in self.modules():
            if isinstance(module, PatchEmbed):
                module.reset_parameters()
            elif isinstance(module, ControlEmbed):
                module.zero_output()
            elif isinstance(module, TimestepMLP | CaptionProjection):
                nn.init.normal_(module.linear_1.weight, std=0.02)
                nn.init.normal_(module.linear_2.weight, std=0.02)
        for name, table in self.named_parameters():
            if name.endswith("scale_shift_table"):
                nn.init.normal_(table, std=self.width**-0.5)

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position."""
        self.check_requested(input.requested)
        grid = patch_grid(input.latents, self.patch)
        tokens = no_view(self.embed_patches(input))  # (B, L, D)
        embedded = per_token(self.adaln_single.embed(input.embedded_t), self.patch[0], grid)  # (B, 1 or L, D)
        context = self._context(input, grid, embedded)
        sequence, last = self.sequence_of(grid, None, tokens.device), len(self.transformer_blocks) - 1
        tokens, features = through_blocks(
            self.run,
            self.transformer_blocks,
            self.watched,
            tokens,
            context,
            input.requested,
            sequence,
            input.additions,
        )
        embedded = sequence.own(last, embedded, 1)
        # (B, 1 or L, D) each, of the same embedding: the head has no linear map of its own
        shift, scale = (embedded.repeat(1, 1, 2) + self.scale_shift_table.flatten()).chunk(2, dim=-1)
        patches = sequence.leave(last, self.proj_out(modulate(tokens, shift, scale)))  # (B, L, p q r C)
        return DenoiserOutput(self.unpatchify(patches, grid), features)

    @override
    def token_count(self, latent: LatentShape) -> int:
        return latent.frames * latent.height * latent.width // math.prod(self.patch)

    def embed_patches(self, input: DenoiserInput) -> Float[Tensor, "B L D"]:
        """Tokens of the noisy latents, plus those of each control."""
        tokens = self.pos_embed(input.latents)  # (B, L, D)
        parts = split_controls(input.controls, self.control_channels)
        for name, part in zip(self.control_names, parts, strict=True):
            tokens = tokens + self.get_submodule(name)(part.to(tokens.dtype))
        return tokens

    def unpatchify(self, patches: Float[Tensor, "B L K"], grid: Grid) -> Float[Tensor, "B C T H W"]:
        """Features of a token, ordered (frames, rows, columns, channels), to latents."""
        p, q, r = self.patch
        return rearrange(
            patches, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=grid.frames, h=grid.height, w=grid.width, p=p, q=q, r=r,
        )  # fmt: skip

    def _context(self, input: DenoiserInput, grid: Grid, embedded: Float[Tensor, "B #L D"]) -> BlockContext:
        text, head_dim = input.text, self.width // self.heads
        return BlockContext(
            grid=grid,
            rotation=self.tables.get(
                rotation, grid, head_dim, self.rope_base, self.rope_scale, device=input.latents.device
            ),
            modulation=self.adaln_single(embedded),
            text=None if text is None else any_length(self.caption_projection(text.tokens)),
            text_mask=None if text is None or text.hidden is None else any_length(text.mask),
        )


def control_names(count: int) -> tuple[str, ...]:
    """Module names of the embeddings of ``count`` controls."""
    return (*CONTROL_NAMES, *(f"pos_embed_control_{i}" for i in range(len(CONTROL_NAMES), count)))[:count]
