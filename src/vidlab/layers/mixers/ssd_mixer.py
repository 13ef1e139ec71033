"""The state-space mixer of Mamba-2 without its output projection and norm: what M4V puts in place of attention."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.features.memory import Memory
from vidlab.layers.mixers.mixer import MixerKernels, Real

GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "silu_mul": lambda y, z: y * F.silu(z)}
"""How the second branch z meets the scan's output: M4V's figure draws a plus, Mamba has y SiLU(z)."""

DT_RANGE = (1e-3, 0.1)
A_RANGE = (1.0, 16.0)


class SSDMixer(nn.Module):
    """Projections, a causal depthwise convolution with SiLU, the SSD recurrence, and a second branch.

    M4V (arXiv 2506.10915), figure 2: Y = SSM(Conv(FC(R))) + FC(R). The paper does not name its Mamba; this is Mamba-2
    (Dao & Gu 2024), sized so that attention's matrices fit: each head has keys and queries of its own, as wide as its
    values. Fresh values are Mamba-2's: A uniform in 1 to 16, dt log-uniform in 1e-3 to 0.1, D = 1.

    Args:
        width: D, a multiple of ``heads``.
        heads: N; P = D / N.
        kernels: ``ssm`` is used.
        state: S, P by default.
        groups: G, how many heads have keys and queries of their own; N by default.
        conv: tokens that the convolution sees, itself included.
        conv_on: ``x``, the values alone, or ``xBC``, keys and queries too, as Mamba-2 does.
        gate: a key of ``GATES``.

    Attributes:
        rows: which rows of ``in_proj`` give z (gate), x (values), B (keys), C (queries) and dt. Matrices of attention
            go there as they are: W_v to x, W_k to B, W_q to C.

    Raises:
        UserError: sizes that do not divide, or an unknown choice.
    """

    resumable = True

    def __init__(
        self,
        width: int,
        heads: int,
        kernels: MixerKernels | None = None,
        state: int | None = None,
        groups: int | None = None,
        conv: int = 4,
        conv_on: str = "x",
        gate: str = "add",
    ) -> None:
        super().__init__()
        groups = groups or heads
        _check(width, heads, groups, conv_on, gate)
        self.heads, self.groups = heads, groups
        self.kernel = (kernels or MixerKernels()).ssm
        self.gate, self.conv_on = gate, conv_on
        keys = groups * (state or width // heads)
        self.sizes = {"z": width, "x": width, "B": keys, "C": keys, "dt": heads}
        self.in_proj = nn.Linear(width, sum(self.sizes.values()))
        self.conv = nn.Conv1d(channels := width + 2 * keys * (conv_on == "xBC"), channels, conv, groups=channels)
        self.activation = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.reset_recurrence()

    @property
    def rows(self) -> dict[str, slice]:
        """Rows of ``in_proj`` by what they give."""
        ends, found = 0, {}
        for name, size in self.sizes.items():
            found[name] = slice(ends, ends + size)
            ends += size
        return found

    @torch.no_grad()
    def reset_recurrence(self) -> None:
        """Draw A and the bias of dt anew: softplus(dt_bias) is log-uniform in ``DT_RANGE``."""
        low, high = (math.log(bound) for bound in DT_RANGE)
        dt = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(*A_RANGE).log())
        self.D.fill_(1.0)

    @override
    def forward(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> Float[Tensor, "B L D"]:
        return self._mix(x, real)[0]

    def remember(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> tuple[Float[Tensor, "B L D"], Memory]:
        """As a call; and what the convolution will see of these tokens, and the state behind the last."""
        y, *memory = self._mix(x, real)
        return y, Memory(tuple(memory))

    def resume(self, x: Float[Tensor, "B L D"], memory: Memory) -> Float[Tensor, "B L D"]:
        """What a call would give for ``x`` after the tokens of ``memory``."""
        return self._mix(x, None, *memory.tensors)[0]

    def _mix(
        self, x: Float[Tensor, "B L D"], real: Real | None, seen: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B E conv_1"], Float[Tensor, "B N P S"]]:
        z, values, keys, queries, dt = self.in_proj(x).split(list(self.sizes.values()), dim=-1)  # (B, L, sizes)
        if self.conv_on == "x":
            values, seen = self._convolve(values, real, seen)
        else:
            parts, seen = self._convolve(torch.cat([values, keys, queries], dim=-1), real, seen)
            values, keys, queries = parts.split([self.sizes[name] for name in ("x", "B", "C")], dim=-1)
        y, state = self.kernel(
            values.unflatten(-1, (self.heads, -1)),  # (B, L, N, P)
            F.softplus(dt.float() + self.dt_bias),  # (B, L, N)
            -self.A_log.float().exp(),
            keys.unflatten(-1, (self.groups, -1)),  # (B, L, G, S)
            queries.unflatten(-1, (self.groups, -1)),  # (B, L, G, S)
            self.D.float(),
            state,
            real,
        )  # (B, L, N, P)
        return GATES[self.gate](y.flatten(2), z), seen, state

    def _convolve(
        self, x: Float[Tensor, "B L E"], real: Real | None, seen: Float[Tensor, "B E conv_1"] | None
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E conv_1"]]:
        """Causally, after the inputs ``seen`` last, zeros where there were none; and those seen last now."""
        if real is not None:
            x = x.masked_fill(~real[..., None], 0.0)  # the projection's bias is not zero at pads
        before = self.conv.kernel_size[0] - 1
        padded = F.pad(x.mT, (before, 0)) if seen is None else torch.cat([seen, x.mT], dim=-1)  # (B, E, conv - 1 + L)
        return self.activation(self.conv(padded).mT), padded[..., padded.shape[-1] - before :]


def _check(width: int, heads: int, groups: int, conv_on: str, gate: str) -> None:
    if width % heads or heads % groups:
        raise UserError(
            f"mixer=ssd: the width {width} must be a multiple of the {heads} heads, and these of the {groups} groups."
        )
    if conv_on not in ("x", "xBC"):
        raise UserError(f"mixer.conv_on={conv_on}: choose one of x, xBC.")
    if gate not in GATES:
        raise UserError(f"mixer.gate={gate}: choose one of {', '.join(GATES)}.")
