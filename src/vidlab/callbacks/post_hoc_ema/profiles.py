"""Power-function averages of weights, and one of any length out of snapshots of others (arXiv:2312.02696).

The average at step t is (gamma + 1) / t^(gamma + 1) times the integral of s^gamma theta(s) over 0 < s <= t (Karras et
al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Eq. 1). Its length is told as sigma_rel,
the standard deviation of that weighting over t. Updated once a step with decay (1 - 1/t)^(gamma + 1), it is exactly the
average of weights that stand still within each step: those of step k count (k^(gamma + 1) - (k - 1)^(gamma + 1)) /
t^(gamma + 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from vidlab.errors import UserError

LONGEST = 12**-0.5
"""sigma_rel of gamma = 0, the mean over all steps: 1 / sqrt(12) = 0.2887."""


@dataclass(frozen=True)
class Snapshot:
    """A stored average: its length, and the step at which it was stored."""

    sigma_rel: float
    step: int


def length_of(gamma: float) -> float:
    """sigma_rel of an exponent (Eq. 2): sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent_of(sigma_rel: float, key: str = "sigma_rel") -> float:
    """gamma of a length: the root above -1 of gamma^3 + 7 gamma^2 + (16 - u) gamma + 12 - u, u = sigma_rel^-2.

    Args:
        sigma_rel: from above 0 to 0.2887; the average reaches back over about twice that share of training.
        key: of the setting, for the message.

    Raises:
        UserError: a length that no exponent from 0 on has.
    """
    if not 0 < sigma_rel <= LONGEST + 1e-12:
        raise UserError(
            f"{key}={sigma_rel}: a length lies above 0 and not above {LONGEST:.4f} (the mean of all steps)."
        )
    low, high = 0.0, 1.0
    while length_of(high) > sigma_rel:
        high *= 2
    for _ in range(200):  # sigma_rel falls with gamma from 0 on
        middle = (low + high) / 2
        low, high = (middle, high) if length_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def decay_at(step: int, gamma: float) -> float:
    """beta at a step from 1 on (Eq. 3): the average before counts (1 - 1/t)^(gamma + 1), the new weights the rest."""
    return (1 - 1 / step) ** (gamma + 1)


def overlaps(first: Sequence[Snapshot], second: Sequence[Snapshot]) -> Float64[Tensor, "n m"]:
    """Inner products over the step of the weightings of two lists of averages (Appendix C, Algorithm 3).

    For steps s <= t and exponents a, b: (a + 1)(b + 1) / ((a + b + 1) t) (s / t)^b, with a and s of one average.
    """
    t_a, a = _columns(first, (-1, 1))
    t_b, b = _columns(second, (1, -1))
    ratio, exponent = t_a / t_b, torch.where(t_a < t_b, b, -a)
    return (a + 1) * (b + 1) * ratio**exponent / ((a + b + 1) * torch.maximum(t_a, t_b))  # (n, m)


def combination(stored: Sequence[Snapshot], wanted: Snapshot) -> list[float]:
    """The factors with which stored averages add up to that nearest to the wanted one, by least squares.

    Args:
        stored: of steps up to that of ``wanted``.
        wanted: the average to be had.

    Raises:
        UserError: nothing is stored, or only later averages.
    """
    if not stored or any(one.step > wanted.step for one in stored):
        raise UserError(f"an average at step {wanted.step} takes snapshots up to that step, at least one.")
    system, target = overlaps(stored, stored), overlaps(stored, [wanted])
    # each weighting has the size that its own overlap tells: with all of size one the system is better conditioned
    size = system.diagonal().sqrt()
    system = system / (size[:, None] * size)
    found = torch.linalg.lstsq(system, target / size[:, None], driver="gelsd").solution[:, 0]
    return [float(one) for one in found / size]


def _columns(found: Sequence[Snapshot], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    steps = torch.tensor([float(one.step) for one in found], dtype=torch.float64).reshape(shape)
    exponents = torch.tensor([exponent_of(one.sigma_rel) for one in found], dtype=torch.float64).reshape(shape)
    return steps, exponents
