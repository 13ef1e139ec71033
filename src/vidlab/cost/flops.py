"""Parameters, tokens and FLOPs of a model."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import Controls, DenoiserInput, DenoiserOutput, History, TextEmbedding
from vidlab.cost.counting import ProductCounter
from vidlab.diffusion.objective import InputShape
from vidlab.features import FrameAttention
from vidlab.layers.mixers.flops import FLOP_FORMULAS
from vidlab.structure import StructureSignal


@dataclass(frozen=True)
class ModelCost:
    """Cost of one clip in a training step.

    FLOPs count each multiply-add of matrix products and convolutions as two operations and nothing else. The backward
    pass has two products for each one, but for those that nobody needs: of a frozen weight's gradient, and of the
    gradient of what lies before everything that is trained.

    Args:
        parameters: of the whole network.
        tokens: that it processes.
        forward_flops: of the forward pass.
        backward_flops: of the backward pass, without recomputation.
        attention_flops: of both, those in which activations meet activations: scores and weighted sums.
    """

    parameters: int
    tokens: int
    forward_flops: int
    backward_flops: int = 0
    attention_flops: int = 0

    @property
    def training_flops(self) -> int:
        """FLOPs of forward and backward for one clip, without recomputation."""
        return self.forward_flops + self.backward_flops


def mean_cost(costs: Sequence[tuple[float, ModelCost]]) -> ModelCost:
    """The mean over kinds of input of one model, each with the share of steps that read it."""
    if len(costs) == 1:
        return costs[0][1]
    names = [field.name for field in fields(ModelCost) if field.name != "parameters"]
    means = {name: round(sum(share * getattr(cost, name) for share, cost in costs)) for name in names}
    return ModelCost(costs[0][1].parameters, **means)


@dataclass(frozen=True)
class StepInput:
    """What decides the cost of a clip in a training step.

    Args:
        shape: the latents that the denoiser reads, and their history; the share is not looked at.
        text_tokens: tokens of its caption, padding to the longest of a batch included.
        control_channels: channels of the controls read besides the latents.
        requested: features that losses ask for, computed with gradient.
        text_gradient: whether the text encoder is trained, so that gradients go on into the text.
    """

    shape: InputShape
    text_tokens: int
    control_channels: int = 0
    requested: frozenset[str] = frozenset()
    text_gradient: bool = False


class DenoiserCounter:
    """Counts what a training step of a denoiser computes, on the meta device: no memory is touched, any size is fine.

    A forward and a backward pass are run there once for each ``StepInput``, from the prediction and all requested
    features, so that frozen parts and second branches count as they do in training. The network is in training mode:
    tokens that it drops there are not counted. Attention and state spaces are counted by the formula of their products,
    whichever kernel computes them.

    Args:
        backbone: built on the meta device, with an attention kernel that runs there.
        text_width: width of text tokens.
    """

    def __init__(self, backbone: VideoDenoiser, text_width: int) -> None:
        self.backbone = backbone.train()
        self.backbone.activation_checkpointing = False  # what is computed twice is no work of the model
        self.text_width = text_width
        self._counted: dict[StepInput, ModelCost] = {}

    def cost(self, read: StepInput) -> ModelCost:
        """The cost of one clip."""
        read = replace(read, shape=replace(read.shape, share=1.0))
        if read not in self._counted:
            self._counted[read] = self._count(read)
        return self._counted[read]

    def _count(self, read: StepInput) -> ModelCost:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
            input = replace(self._input(read.shape, read.text_tokens, read.control_channels), requested=read.requested)
            if read.text_gradient and input.text is not None:
                input.text.tokens.requires_grad_()
                input.text.pooled.requires_grad_()
            with ProductCounter(FLOP_FORMULAS) as forward:
                output = self.backbone(input)
            made = [made for made in _tensors(output) if made.requires_grad]
            with ProductCounter(FLOP_FORMULAS) as backward:
                torch.autograd.backward(made, [torch.empty_like(one) for one in made])
            self.backbone.zero_grad(set_to_none=True)
        return ModelCost(
            parameters=sum(p.numel() for p in self.backbone.parameters()),
            tokens=sum(self.backbone.token_count(part) for part in (read.shape.latent, *read.shape.history)),
            forward_flops=forward.total,
            backward_flops=backward.total,
            attention_flops=forward.batched + backward.batched,
        )

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
            pooled=torch.empty(1, self.backbone.spec.pooled_width or self.text_width),
        )
        level, latents = torch.empty(1), torch.empty(shape)
        micro = {name: torch.empty(1, *size) for name, size in self.backbone.micro_shapes(latent).items()}
        extra = torch.empty(1, control_channels, *shape[2:])
        controls = Controls(extra, latents[:, :1]) if control_channels else None
        history = tuple(
            History(torch.empty(1, part.channels, part.frames, part.height, part.width), torch.arange(part.frames))
            for part in read.history
        )
        told = self.backbone.structure_shape(latent)
        structure = StructureSignal(torch.empty(1, *told)) if told else None
        return DenoiserInput(latents, level, level, text, history, controls, micro, structure=structure)


def autoencoder_cost(autoencoder: Autoencoder, frames: int, height: int, width: int) -> ModelCost:
    """Encoding and decoding one clip, forward and backward; tokens are its latent positions.

    Counted on the meta device, as if every parameter were trained.

    Args:
        autoencoder: a built one, which is left as it is.
        frames, height, width: of the clip.
    """
    latent = autoencoder.latent_shape(frames, height, width)
    hollow = _on_meta(autoencoder).requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        with ProductCounter() as forward:
            made = hollow.decode(hollow.encode(torch.empty(1, 3, frames, height, width, device="meta")))
        with ProductCounter() as backward:
            if made.requires_grad:
                torch.autograd.backward(made, torch.empty_like(made))
    return ModelCost(
        parameters=sum(p.numel() for p in autoencoder.parameters()),
        tokens=latent[1] * latent[2] * latent[3],
        forward_flops=forward.total,
        backward_flops=backward.total,
        attention_flops=forward.batched + backward.batched,
    )


def encoder_flops(autoencoder: Autoencoder, frames: int, height: int, width: int) -> int:
    """FLOPs of encoding one clip, which is what a frozen autoencoder does in a training step.

    Of a fixed transform without parameters, such as Haar's, there is nothing worth counting: 0.

    Args:
        autoencoder: a built one, which is left as it is.
        frames, height, width: of the clip.
    """
    if not any(True for _ in autoencoder.parameters()):
        return 0
    hollow = _on_meta(autoencoder)
    with ProductCounter() as counter, torch.no_grad():
        hollow.encode(torch.empty(1, 3, frames, height, width, device="meta"))
    return counter.total


def _tensors(output: DenoiserOutput) -> Iterator[Tensor]:
    """The prediction and whatever a feature holds."""
    yield output.prediction
    for feature in output.features.values():
        for part in (feature,) if isinstance(feature, Tensor) else feature:
            yield from (part.q, part.k) if isinstance(part, FrameAttention) else (part,)


def _on_meta(autoencoder: Autoencoder) -> Autoencoder:
    """A copy without numbers, made without copying the numbers first."""
    hollow: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in autoencoder.parameters()}
    hollow |= {id(buffer): buffer.to("meta") for buffer in autoencoder.buffers()}
    return deepcopy(autoencoder, hollow)
