"""HARIVO: a frozen text-to-image UNet, trainable layers between its blocks and networks around it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.backbones.base import BackboneSpec, VideoDenoiser, split_controls
from vidlab.backbones.harivo.conditions import FrameTokens, MappingLayer, with_frame_tokens
from vidlab.backbones.harivo.controlnet import FrameControlNet
from vidlab.backbones.harivo.image import check_single_places
from vidlab.backbones.harivo.image_model import DIGEST, ImageModel
from vidlab.backbones.harivo.image_prompt import ImagePrompt
from vidlab.backbones.harivo.lora import LoRA, is_lora
from vidlab.backbones.harivo.lora_files import FILE
from vidlab.backbones.harivo.temporal import NORMS, TemporalModule
from vidlab.backbones.harivo.unet import (
    FrameControls,
    FramePass,
    check_unet,
    clips_of,
    frame_levels,
    frames_of,
    make_unet,
    places,
    record_attention,
    small_config,
    text_of,
)
from vidlab.clip import IMAGE_PROMPT, DenoiserInput, DenoiserOutput, LatentShape
from vidlab.errors import UserError
from vidlab.features import H_SPACE, IMAGE_BRANCH, SELF_ATTENTION, Feature, FrameAttention

log = logging.getLogger(__name__)

PARTS = ("down", "mid", "up")
FEATURES = frozenset({SELF_ATTENTION, H_SPACE, IMAGE_BRANCH})
SPEC = BackboneSpec(
    reads_controls=True,
    reads_pooled_text=False,
    features=FEATURES,
    hidden_matrices=("temporal.*", "mapping.*"),
    temporal=("temporal.*", "frame_tokens.*"),
)
BODY = "body."
DIGEST_NAME = "image_digest"


@dataclass(frozen=True)
class _Given:
    """What one forward pass reads, mapped to where the image model expects it."""

    latents: Float[Tensor, "B C T H W"]
    levels: Float[Tensor, "BT"]
    text: Float[Tensor, "B S D"]
    bias: Float[Tensor, "B 1 S"]
    extra: Tensor | None
    image_tokens: Float[Tensor, "BT I D"] | None


class HARIVO(VideoDenoiser):
    """A video model of which only what makes it move is trained (Kwon et al., "HARIVO", ECCV 2024).

    The UNet of a text-to-image model stays as it is, to the bit. A mapping network moves the noisy latents before it,
    temporal modules stand after each of its pairs of a residual block and attention, and tokens of each frame stand
    after those of the text. A new model predicts what the image model predicts of each frame, but for the frame's
    tokens, which attention reads from the start; with ``temporal=false`` it does so always.

    The body is not saved with what was trained. ``image_digest`` is, of 16 bytes, and weights trained on another body
    are refused. Left open by the paper and chosen here: one mapping layer, and the inside of its convolution.

    Features: ``self_attention`` of the decoder (nine layers in Stable Diffusion; eq. 3), ``h_space`` after the middle
    block (eq. 4), and ``image_branch``, the prediction with the mapping network alone, with gradient (of eq. 2, the
    second term).

    Args:
        latent: shape of the latents; its frames are those that have tokens.
        text_width: width of text tokens.
        image_model: the frozen body; without a path, random weights of the following sizes.
        width: channels of the first level of a body without a path.
        depth: residual blocks to a level of a body without a path.
        heads: attention heads of the temporal modules, and of a body without a path.
        patch: (1, 1, 1): a UNet reads latent positions one by one.
        temporal_parts: where temporal modules stand, out of ``down``, ``mid`` and ``up``: 8, 1 and 12 of them at depth
            2. With all three and the other defaults the size of Stable Diffusion 1.5 has 455.6 million trainable
            parameters (24 frames, text of width 768), the 0.45 billion of the paper's table.
        temporal_norm: statistics of their GroupNorm: ``frame`` or ``clip``.
        mapping_layers: layers of the mapping network; 0 for none.
        frame_tokens: K, tokens of each frame, 3 in the paper; 0 for none.
        text_tokens: M, text tokens that they are made of.
        temporal: false leaves temporal modules and frame tokens out: the image model with the mapping network.
        other_image_model: take weights trained on another body, such as a personalized one of the same structure.
        lora_rank: of a LoRA on the body's attention that is trained with the rest; 0 for none. It is part of the image
            model wherever that predicts, ``image_branch`` and ``temporal=false`` included.
        lora_alpha: its scale times its rank; None is the rank.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
        control_channels: channels of each part of the controls, added through convolutions that start at zero.

    Raises:
        UserError: a setting that there is not, or a body of other latents or text.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        image_model: ImageModel | None = None,
        width: int = 320,
        depth: int = 2,
        heads: int = 8,
        patch: Sequence[int] = (1, 1, 1),
        temporal_parts: Sequence[str] = PARTS,
        temporal_norm: str = "frame",
        mapping_layers: int = 1,
        frame_tokens: int = 3,
        text_tokens: int = 77,
        temporal: bool = True,
        other_image_model: bool = False,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        activation_checkpointing: bool | str = False,
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_single_places(patch)
        _check(temporal_parts, temporal_norm, mapping_layers, frame_tokens, text_tokens)
        self.spec = replace(SPEC, control_channels=tuple(control_channels))
        self.activation_checkpointing, self.text_width = activation_checkpointing, text_width
        self.temporal_on, self.other_image_model = temporal, other_image_model
        self.image_model = image_model or ImageModel()
        config = self.image_model.config or small_config(latent.channels, text_width, width, depth, heads)
        self.body, digest = self._body(config, latent.channels)
        first = int(self.body.config["block_out_channels"][0])
        self.register_buffer(DIGEST_NAME, torch.tensor(list(digest), dtype=torch.uint8))
        record_attention(self.body)
        self.lora = LoRA(lora_rank, lora_alpha)
        self.lora.put_into(self.body)
        where = places(self.body, temporal_parts)
        self.temporal = nn.ModuleDict({at: TemporalModule(n, heads, temporal_norm) for at, n in where.items()})
        self.mapping = nn.Sequential(*(MappingLayer(latent.channels) for _ in range(mapping_layers)))
        counts = (text_tokens, latent.frames, frame_tokens)
        self.frame_tokens = FrameTokens(text_width, *counts) if frame_tokens else None
        self.controls = nn.ModuleList(FrameControls(channels, first) for channels in control_channels)
        # given to a trained model that makes videos
        self.control: FrameControlNet | None = None
        self.image_prompt: ImagePrompt | None = None
        for part in () if temporal else (self.temporal, self.frame_tokens):
            if part is not None:
                part.requires_grad_(False)

    def _body(self, config: dict[str, Any], channels: int) -> tuple[Any, bytes]:
        """The frozen UNet and its digest, which is zero where it has no weights of its own."""
        nameless = bytes(DIGEST)
        if self.image_model.path is None:
            body, digest = make_unet(config), nameless
        else:
            check_unet(self.image_model.hollow().config, channels, self.text_width, self.image_model.origin)
            planned = torch.get_default_device().type == "meta"
            body, digest = (self.image_model.hollow(), nameless) if planned else self.image_model.build()
        return body.requires_grad_(False).eval(), digest

    @override
    def train(self, mode: bool = True) -> "HARIVO":
        super().train(mode)
        self.body.eval()
        return self

    @override
    def frozen_keys(self) -> set[str]:
        return {name for name in self.state_dict() if name.startswith(BODY) and not is_lora(name)}

    @override
    def write_companions(self, folder: Path) -> dict[str, str]:
        if not self.lora.rank:
            return {}
        self.lora.write(self.body, folder)
        return {"LoRA": f"{FILE}, once more, for load_lora_weights of diffusers"}

    @override
    def micro_shapes(self, latent: LatentShape) -> dict[str, tuple[int, ...]]:
        return {} if self.image_prompt is None else {IMAGE_PROMPT: (1,)}

    @override
    def repeated_blocks(self) -> Iterator[nn.Module]:
        yield from (module for module in self.modules() if isinstance(module, TemporalModule))

    @override
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        self.check_requested(input.requested)
        given = self._given(input)
        prediction, walk = self._video(given, SELF_ATTENTION in input.requested)
        features: dict[str, Feature] = {}
        frames = input.latents.shape[2]
        if SELF_ATTENTION in input.requested:
            features[SELF_ATTENTION] = tuple(_by_frame(found, frames) for found in walk.attention)
        if H_SPACE in input.requested:
            assert walk.h_space is not None
            features[H_SPACE] = clips_of(walk.h_space, frames)
        if IMAGE_BRANCH in input.requested:
            features[IMAGE_BRANCH] = self._image(given)
        return DenoiserOutput(prediction, features)

    def _given(self, input: DenoiserInput) -> _Given:
        text, bias = text_of(input, self.text_width)
        parts = split_controls(input.controls, self.spec.control_channels)
        added = [embed(part) for embed, part in zip(self.controls, parts, strict=True)]
        extra = sum(added[1:], added[0]) if added else None
        dtype = self.body.conv_in.weight.dtype
        latents = self.mapping(input.latents.to(_dtype(self.mapping, dtype))).to(dtype)  # (B, C, T, H, W)
        tokens = None if self.image_prompt is None else self.image_prompt(input.micro[IMAGE_PROMPT], latents.shape[2])
        return _Given(latents, frame_levels(input), text.to(dtype), bias.to(dtype), extra, tokens)

    def _video(self, given: _Given, attention: bool) -> tuple[Float[Tensor, "B C T H W"], FramePass]:
        """The prediction with everything on, and what was seen on the way."""
        if not self.temporal_on:
            return self._walk(given, *self._repeated(given), attention)
        frames = given.latents.shape[2]

        def between(place: str, x: Tensor) -> Tensor:
            if place not in self.temporal:
                return x
            module = self.temporal[place]
            mixed: Tensor = self.run(module, x.to(_dtype(module, x.dtype)), frames)
            return mixed.to(x.dtype)

        text, bias = self._repeated(given)
        if self.frame_tokens is not None:
            text, bias = with_frame_tokens(
                given.text,
                given.bias,
                self.frame_tokens(given.text.to(_dtype(self.frame_tokens, given.text.dtype)), frames),
            )
        return self._walk(given, text, bias, attention, between=between)

    def _image(self, given: _Given) -> Float[Tensor, "B C T H W"]:
        """The prediction of the image model for each frame, behind the mapping network."""
        return self._walk(given, *self._repeated(given), False)[0]

    def _walk(
        self, given: _Given, text: Tensor, bias: Tensor, attention: bool, **more: Any
    ) -> tuple[Float[Tensor, "B C T H W"], FramePass]:
        walk = FramePass(given.levels, text, bias, run=self.run, extra=given.extra, wanted=attention, **more)
        walk.image_tokens = given.image_tokens
        if self.control is not None:
            walk.added = self.control(given.latents, given.levels, *self._repeated(given))
        frames = walk(self.body, frames_of(given.latents))  # (B T, C, H, W)
        return clips_of(frames, given.latents.shape[2]), walk

    @staticmethod
    def _repeated(given: _Given) -> tuple[Tensor, Tensor]:
        count = given.latents.shape[2]
        return given.text.repeat_interleave(count, 0), given.bias.repeat_interleave(count, 0)

    @override
    def token_count(self, latent: LatentShape) -> int:
        return latent.frames * latent.height * latent.width

    @override
    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Refuse what was trained on another frozen body."""
        found, own = state_dict.get(prefix + DIGEST_NAME), self.get_buffer(DIGEST_NAME)
        if found is None:
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        named = found.any() and own.device.type != "meta" and own.any()
        other = named and not torch.equal(found.cpu(), own.cpu())
        if other and self.other_image_model:
            log.info(
                "%s is not what these weights were trained on: they move another image model", self.image_model.origin
            )
        elif other:
            raise UserError(
                f"{self.image_model.origin} is not the image model that these weights were trained on: its digest is "
                f"{bytes(own.tolist()).hex()}, theirs {bytes(found.tolist()).hex()}. Give that one; or, to move "
                "another of the same structure, add model.backbone.other_image_model=true."
            )
        kept = own.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.other_image_model:
            own.copy_(kept)


def _dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """That of its weights, which is float64 under ``precision=64-true`` where the frozen body's stays float32."""
    return next((parameter.dtype for parameter in module.parameters()), otherwise)


def _by_frame(found: Float[Tensor, "BT 2 N L d"], frames: int) -> FrameAttention:
    q, k = found.transpose(2, 3).unflatten(0, (-1, frames)).unbind(2)  # each (B, T, L, N, d)
    return FrameAttention(q, k)


def _check(
    temporal_parts: Sequence[str], temporal_norm: str, mapping_layers: int, frame_tokens: int, text_tokens: int
) -> None:
    if not set(temporal_parts) <= set(PARTS) or not temporal_parts:
        raise UserError(f"model.backbone.temporal_parts={list(temporal_parts)}: choose out of {', '.join(PARTS)}.")
    if temporal_norm not in NORMS:
        raise UserError(f"model.backbone.temporal_norm={temporal_norm}: choose {' or '.join(NORMS)}.")
    if min(mapping_layers, frame_tokens) < 0 or text_tokens < 1:
        raise UserError(
            f"model.backbone: mapping_layers={mapping_layers} and frame_tokens={frame_tokens} must not be negative, "
            f"text_tokens={text_tokens} must be positive."
        )
