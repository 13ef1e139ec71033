"""The embedding of the noise level: sinusoids of it through a small perceptron."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoidal(t: Float[Tensor, "*t"], width: int, max_period: float = 10000.0) -> Float[Tensor, "*t width"]:
    """cos then sin of t at ``width / 2`` geometric frequencies from 1 to 1 / max_period (Ho et al. 2020).

    Raises:
        ValueError: ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"width={width} must be even")
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[..., None] * torch.exp(-math.log(max_period) * exponent)  # (*t, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (*t, width)


class TimestepEmbedder(nn.Module):
    """Sinusoids of the embedded noise level through a two-layer SiLU perceptron."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t D"]:
        """One vector per noise level."""
        weight = self.mlp.get_parameter("0.weight")
        return self.mlp(sinusoidal(t, self.frequencies).to(weight.dtype))
