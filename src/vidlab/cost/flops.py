"""Parameters, tokens and FLOPs of a model."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import Controls, DenoiserInput, History, TextEmbedding
from vidlab.diffusion.objective import InputShape
from vidlab.layers.mixers.flops import FLOP_FORMULAS


@dataclass(frozen=True)
class ModelCost:
    """Cost of one clip in a training step.

    ``forward_flops`` counts each multiply-add of matrix products as two operations and nothing else;
    ``training_flops`` is three times as much, since the backward pass makes two products for each one.
    """

    parameters: int
    tokens: int
    forward_flops: int

    @property
    def training_flops(self) -> int:
        """FLOPs of forward and backward for one clip, without recomputation."""
        return 3 * self.forward_flops


def mean_cost(costs: Sequence[tuple[float, ModelCost]]) -> ModelCost:
    """The mean over kinds of input of one model, each with the share of steps that read it."""
    if len(costs) == 1:
        return costs[0][1]
    tokens, flops = (sum(share * size for share, size in sizes) for sizes in (
        [(share, cost.tokens) for share, cost in costs], [(share, cost.forward_flops) for share, cost in costs],
    ))  # fmt: skip
    return ModelCost(costs[0][1].parameters, round(tokens), round(flops))


class DenoiserCounter:
    """Counts what a training step of a denoiser computes, on the meta device: no memory is touched, any size is fine.

    The network is in training mode: tokens that it drops there are not counted. Attention and state spaces are counted
    by the formula of their products, whichever kernel computes them.

    Args:
        backbone: built on the meta device, with an attention kernel that runs there.
        text_width: width of text tokens.
    """

    def __init__(self, backbone: VideoDenoiser, text_width: int) -> None:
        self.backbone = backbone.train()
        self.backbone.activation_checkpointing = False  # what is computed twice is no work of the model
        self.text_width = text_width
        self._counted: dict[tuple[InputShape, int, int], ModelCost] = {}

    def cost(self, shape: InputShape, text_tokens: int, control_channels: int = 0) -> ModelCost:
        """The cost of one clip.

        Args:
            shape: its latents and their history; the share is not looked at.
            text_tokens: tokens of its caption, padding to the longest of a batch included.
            control_channels: channels of the controls read besides the latents.
        """
        key = (shape, text_tokens, control_channels)
        if key not in self._counted:
            with (
                torch.device("meta"),
                FlopCounterMode(display=False, custom_mapping=dict(FLOP_FORMULAS)) as counter,
                torch.no_grad(),
            ):
                self.backbone(self._input(shape, text_tokens, control_channels))
            self._counted[key] = ModelCost(
                parameters=sum(p.numel() for p in self.backbone.parameters()),
                tokens=sum(self.backbone.token_count(part) for part in (shape.latent, *shape.history)),
                forward_flops=counter.get_total_flops(),
            )
        return self._counted[key]

    def feature_shapes(
        self, requested: frozenset[str], shape: InputShape, text_tokens: int, control_channels: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of requested features that are tensors, for one clip, without the batch.

        Args:
            requested: their names.
            shape: latents and history of the clip.
            text_tokens: tokens of its caption, padding included.
            control_channels: channels of the controls read besides the latents.
        """
        with torch.device("meta"), torch.no_grad():
            input = replace(self._input(shape, text_tokens, control_channels), requested=requested)
            features = self.backbone(input).features
        return {name: tuple(value.shape[1:]) for name, value in features.items() if isinstance(value, Tensor)}

    def _input(self, read: InputShape, text_tokens: int, control_channels: int) -> DenoiserInput:
        latent = read.latent
        shape = (1, latent.channels, latent.frames, latent.height, latent.width)
        text = TextEmbedding(
            tokens=torch.empty(1, text_tokens, self.text_width),
            mask=torch.ones(1, text_tokens, dtype=torch.bool),
            pooled=torch.empty(1, self.text_width),
        )
        level, latents = torch.empty(1), torch.empty(shape)
        micro = {name: torch.empty(1, *size) for name, size in self.backbone.micro_shapes(latent).items()}
        extra = torch.empty(1, control_channels, *shape[2:])
        controls = Controls(extra, latents[:, :1]) if control_channels else None
        history = tuple(
            History(torch.empty(1, part.channels, part.frames, part.height, part.width), torch.arange(part.frames))
            for part in read.history
        )
        return DenoiserInput(latents, level, level, text, history, controls, micro)


def autoencoder_cost(autoencoder: Autoencoder, frames: int, height: int, width: int) -> ModelCost:
    """Encoding and decoding one clip, counted on the meta device; tokens are its latent positions.

    Args:
        autoencoder: a built one, which is left as it is.
        frames, height, width: of the clip.
    """
    latent = autoencoder.latent_shape(frames, height, width)
    hollow = _on_meta(autoencoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hollow.decode(hollow.encode(torch.empty(1, 3, frames, height, width, device="meta")))
    return ModelCost(
        parameters=sum(p.numel() for p in autoencoder.parameters()),
        tokens=latent[1] * latent[2] * latent[3],
        forward_flops=counter.get_total_flops(),
    )


def _on_meta(autoencoder: Autoencoder) -> Autoencoder:
    """A copy without numbers, made without copying the numbers first."""
    hollow: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in autoencoder.parameters()}
    hollow |= {id(buffer): buffer.to("meta") for buffer in autoencoder.buffers()}
    return deepcopy(autoencoder, hollow)
