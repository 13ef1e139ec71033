"""The Triton kernels of the package mamba-ssm (state-spaces/mamba, Dao & Gu 2024) behind the interface of ``ssd``.

Only its module ``ops.triton.ssd_combined`` is used, which needs Triton and einops but not the package's CUDA extension.
"""

import sys
from functools import cache
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.errors import UserError
from vidlab.layers.mixers.ssd import state_dtype, zero_pads, zero_state

CHUNK = 128
"""Tokens of a chunk, a power of two."""


def available() -> bool:
    """Whether the package and Triton are installed."""
    return find_spec("triton") is not None and find_spec("mamba_ssm") is not None


def chunk_scan(
    x: Float[Tensor, "B L N P"],
    dt: Float[Tensor, "B L N"],
    A: Float[Tensor, "N"],
    B: Float[Tensor, "B L G S"],
    C: Float[Tensor, "B L G S"],
    D: Float[Tensor, "N"] | None = None,
    initial_state: Float[Tensor, "B N P S"] | None = None,
    real: Bool[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B L N P"], Float[Tensor, "B N P S"]]:
    """What ``ssd`` computes, by ``mamba_chunk_scan_combined``, on CUDA GPUs.

    States are carried in float32; products take the dtype of ``x``, float32 as TF32.

    Raises:
        UserError: the tensors are not on a GPU.
    """
    if not _on_gpu(x):
        raise UserError("ssm=mamba_ssm: its kernels run on CUDA GPUs only. Use ssm=auto or ssm=torch.")
    x, dt, B = zero_pads(x, dt, B, real)
    state = zero_state(x, B) if initial_state is None else initial_state.float()
    B, C, D = B.to(x.dtype), C.to(x.dtype), None if D is None else D.float()
    y, last = torch.ops.vidlab.mamba_chunk_scan(x, dt.float(), A.float(), B, C, D, state)
    return y, last


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


@cache
def ssd_combined() -> ModuleType:
    """The package's module of the combined kernels.

    ``import mamba_ssm`` itself asks for the CUDA extension. Where that fails, a bare package of that name, with its
    path and no contents, stands in for it, so that the modules below can be imported.
    """
    try:
        import mamba_ssm  # noqa: F401
    except ImportError:
        spec = find_spec("mamba_ssm")
        assert spec is not None
        sys.modules["mamba_ssm"] = module_from_spec(spec)
    from mamba_ssm.ops.triton import ssd_combined

    return ssd_combined


# Operators for torch.compile, which would otherwise trace through the package's own autograd function and autotuner.
torch.library.define(
    "vidlab::mamba_chunk_scan",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state) -> (Tensor, Tensor)",
)


@torch.library.impl("vidlab::mamba_chunk_scan", "CompositeExplicitAutograd")
def _chunk_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    kernel = ssd_combined().mamba_chunk_scan_combined
    return kernel(x, dt, A, B, C, CHUNK, D=D, initial_states=state, return_final_states=True)


torch.library.define(
    "vidlab::mamba_chunk_scan_backward",
    "(Tensor dy, Tensor dstate, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("vidlab::mamba_chunk_scan_backward", "CompositeExplicitAutograd")
def _chunk_scan_backward(
    dy: Tensor, dstate: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backward = ssd_combined()._mamba_chunk_scan_combined_bwd
    # the output is read only where there is a gate; x has its shape
    dx, ddt, dA, dB, dC, dD, _, _, dfirst = backward(
        dy, x, dt, A, B, C, x, CHUNK, D=D, initial_states=state, dfinal_states=dstate
    )
    return dx, ddt, dA, dB, dC, torch.zeros_like(A) if dD is None else dD, dfirst


@torch.library.register_fake("vidlab::mamba_chunk_scan")
def _chunk_scan_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=state_dtype(x.dtype))


@torch.library.register_fake("vidlab::mamba_chunk_scan_backward")
def _chunk_scan_backward_shapes(
    dy: Tensor, dstate: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, dA, dB, dC, dD, dfirst = (t.new_empty(t.shape) for t in (x, dt, A, B, C, A, state))
    return dx, ddt, dA, dB, dC, dD, dfirst


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
    dx, ddt, dA, dB, dC, dD, dfirst = torch.ops.vidlab.mamba_chunk_scan_backward(dy, dstate, *ctx.saved_tensors)
    has_direct_path = ctx.saved_tensors[5] is not None
    return dx, ddt, dA, dB, dC, dD if has_direct_path else None, dfirst


torch.library.register_autograd("vidlab::mamba_chunk_scan", _gradients, setup_context=_keep)
