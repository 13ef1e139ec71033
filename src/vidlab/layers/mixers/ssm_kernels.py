"""State-space kernels: one function, the SSD recurrence, behind which the fastest installed one works."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.errors import UserError
from vidlab.layers.mixers import mamba_ssm
from vidlab.layers.mixers.ssd import ssd

Heads = Float[Tensor, "B L N P"]
Steps = Float[Tensor, "B L N"]
PerHead = Float[Tensor, "N"]
Groups = Float[Tensor, "B L G S"]
State = Float[Tensor, "B N P S"]
Real = Bool[Tensor, "B L"]


@runtime_checkable
class SSMKernel(Protocol):
    """A selective state space, h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t (Dao & Gu 2024)."""

    def __call__(
        self,
        x: Heads,
        dt: Steps,
        A: PerHead,
        B: Groups,
        C: Groups,
        D: PerHead | None = None,
        initial_state: State | None = None,
        real: Real | None = None,
    ) -> tuple[Heads, State]:
        """Outputs (B, L, N, P) in the dtype of ``x`` and the state behind the last token.

        Args:
            x: values of N heads.
            dt: step sizes, not negative.
            A: decay rates, not positive.
            B: what enters the state, as keys; head n takes group n // (N / G).
            C: what reads it, as queries.
            D: weight of the direct path; None leaves it out.
            initial_state: before the first token, zeros by default.
            real: False at pads, which leave the state alone.
        """
        ...


def ssm_kernel(name: str) -> SSMKernel:
    """The kernel of a name: ``auto``, ``torch`` or ``mamba_ssm``.

    Raises:
        UserError: an unknown name, or a package that is missing.
    """
    if name not in SSM_KERNELS:
        raise UserError(f"ssm={name}: choose one of {', '.join(SSM_KERNELS)}.")
    return SSM_KERNELS[name]()


def auto(
    x: Heads, dt: Steps, A: PerHead, B: Groups, C: Groups, D: PerHead | None = None,
    initial_state: State | None = None, real: Real | None = None,
) -> tuple[Heads, State]:  # fmt: skip
    """mamba-ssm's Triton kernels on a CUDA GPU where the package is there; else PyTorch, and always for float64."""
    kernel = mamba_ssm.chunk_scan if x.is_cuda and x.dtype != torch.float64 and mamba_ssm.available() else ssd
    return kernel(x, dt, A, B, C, D, initial_state, real)


def _mamba_ssm() -> SSMKernel:
    if not mamba_ssm.available():
        raise UserError(
            "ssm=mamba_ssm: the packages mamba-ssm and triton are not both installed. Install a set of "
            "requirements-gpu.txt, or use ssm=auto."
        )
    return mamba_ssm.chunk_scan


SSM_KERNELS: dict[str, Callable[[], SSMKernel]] = {
    "auto": lambda: auto,
    "torch": lambda: ssd,
    "mamba_ssm": _mamba_ssm,
}
