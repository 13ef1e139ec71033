"""The singleton condition of STIV: noise level, pooled text and micro-conditions as one vector."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.clip import DenoiserInput
from vidlab.errors import UserError
from vidlab.layers.embeddings import TimestepEmbedder, sinusoidal

FREQUENCIES = 256
# Micro-conditions and how many numbers each has: (height, width) before any crop, (top, left) of the crop, frames of
# the source between two frames of the clip, frames of the clip.
MICRO = {"original_resolution": 2, "crop": 2, "sampling_stride": 1, "frames": 1}


class MicroEmbedder(nn.Module):
    """Sinusoids of each number of a micro-condition through a two-layer SiLU perceptron (SDXL, section 2.2)."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.mlp = nn.Sequential(nn.Linear(numbers * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Float[Tensor, "B numbers"]) -> Float[Tensor, "B D"]:
        """One vector per clip."""
        return self.mlp(sinusoidal(values, FREQUENCIES).flatten(1).to(self.mlp.get_parameter("0.weight").dtype))


class SingletonCondition(nn.Module):
    """The sum of projected noise level, pooled text and micro-conditions.

    With ``norm`` each passes a stateless LayerNorm first, so that none can outweigh the others.

    Raises:
        UserError: a micro-condition that there is not.
    """

    def __init__(self, width: int, text_width: int, micro: Sequence[str], norm: bool) -> None:
        super().__init__()
        unknown = set(micro) - set(MICRO)
        if unknown:
            raise UserError(
                f"model.backbone.micro_conditions={list(micro)}: there is no {sorted(unknown)}; choose among "
                f"{', '.join(MICRO)}."
            )
        self.norm = norm
        self.time = TimestepEmbedder(width)
        self.pooled = nn.Linear(text_width, width)
        self.micro = nn.ModuleDict({name: MicroEmbedder(MICRO[name], width) for name in micro})

    def forward(self, input: DenoiserInput) -> Float[Tensor, "B D"] | Float[Tensor, "B T D"]:
        """One vector per clip, or per latent frame where each has its noise level.

        Raises:
            ValueError: a micro-condition is missing or has another shape.
        """
        total = self._normed(self.time(input.embedded_t))  # (B, D) or (B, T, D)
        per_clip = [] if input.text is None else [self.pooled(input.text.pooled)]
        per_clip += [embed(micro_values(input.micro, name)) for name, embed in self.micro.items()]
        for part in per_clip:
            part = self._normed(part)
            total = total + (part if total.ndim == 2 else part[:, None])
        return total

    def _normed(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) if self.norm else x


def micro_values(micro: Mapping[str, Tensor], name: str) -> Float[Tensor, "B numbers"]:
    """The numbers of one micro-condition.

    Raises:
        ValueError: it is missing, or has not as many numbers as it should.
    """
    if name not in micro:
        raise ValueError(
            f"the backbone was built for the micro-condition {name!r} and the input has {sorted(micro) or 'none'}: "
            f"give it, or leave {name} out of model.backbone.micro_conditions"
        )
    values = micro[name].float()
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != MICRO[name]:
        raise ValueError(f"micro-condition {name!r} is {tuple(micro[name].shape)} and must be (batch, {MICRO[name]})")
    return values
