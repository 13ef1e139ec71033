"""What a model costs: parameters, FLOPs, and the rate this machine reaches on plain matrix products."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import Controls, DenoiserInput, LatentShape, TextEmbedding


@dataclass(frozen=True)
class ModelCost:
    """Cost of one clip.

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


def denoiser_cost(
    make_backbone: Callable[..., VideoDenoiser],
    latent: LatentShape,
    text_width: int,
    text_tokens: int = 16,
    control_channels: int = 0,
) -> ModelCost:
    """Count on the meta device: no memory is touched, any size is fine.

    Args:
        make_backbone: called with ``latent`` and ``text_width``.
        latent: latents of one clip.
        text_width: width of text tokens.
        text_tokens: assumed caption length.
        control_channels: channels of the controls it reads besides the latents.
    """
    with torch.device("meta"):
        backbone = make_backbone(latent=latent, text_width=text_width)
        shape = (1, latent.channels, latent.frames, latent.height, latent.width)
        text = TextEmbedding(
            tokens=torch.empty(1, text_tokens, text_width),
            mask=torch.ones(1, text_tokens, dtype=torch.bool),
            pooled=torch.empty(1, text_width),
        )
        level = torch.empty(1)
        latents = torch.empty(shape)
        micro = {name: torch.empty(1, *shape) for name, shape in backbone.micro_shapes(latent).items()}
        extra = torch.empty(1, control_channels, *shape[2:])
        controls = Controls(extra, latents[:, :1]) if control_channels else None
        input = DenoiserInput(latents, t=level, embedded_t=level, text=text, controls=controls, micro=micro)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone.eval()(input)
    return ModelCost(
        parameters=sum(p.numel() for p in backbone.parameters()),
        tokens=backbone.token_count(latent),
        forward_flops=counter.get_total_flops(),
    )


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


def matmul_rate(dtype: torch.dtype, device: torch.device | str, size: int = 2048, seconds: float = 0.3) -> float:
    """Measured FLOP/s of a square matrix product: the yardstick for the achieved rate of training."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    device = a.device
    a @ b
    best, deadline = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < deadline:  # on a busy machine one product may outlast the time
        _synchronize(device)
        start = time.perf_counter()
        a @ b
        _synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
