"""The state-space dual (SSD) of Mamba-2 by chunks, in PyTorch.

Dao & Gu 2024 (arXiv 2405.21060), section 6. For each head, with values x_t (P), keys B_t and queries C_t (S) and a
state h_t (P x S):

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,    y_t = h_t C_t + D x_t.

Within a chunk of Q tokens this is masked linear attention; between chunks only the state is passed on. Spans of a few
chunks are computed one after the other, forward and backward, each in a scratch memory that does not grow with the
length. Kept for the backward pass are the inputs and one state for each span; the gradients are derived by hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.layers.mixers.ssd_span import Scratch, chunked, cut_span, span_backward, span_forward, unchunked

CHUNKS = {"cpu": 32, "cuda": 64}
"""Tokens of a chunk. Shorter ones save products within chunks and cost traffic of states between them."""

# Scratch of one span: its largest tensor within chunks, Q x Q numbers for each head and chunk. On a CPU a span then
# stays in the caches; a GPU wants work for all of its processors at once.
SPAN_BYTES = {"cpu": 2**18, "cuda": 2**27}
# The decay from chunk to chunk is a matrix of the chunks of a span.
MOST_CHUNKS = 64


def ssd(
    x: Float[Tensor, "B L N P"],
    dt: Float[Tensor, "B L N"],
    A: Float[Tensor, "N"],
    B: Float[Tensor, "B L G S"],
    C: Float[Tensor, "B L G S"],
    D: Float[Tensor, "N"] | None = None,
    initial_state: Float[Tensor, "B N P S"] | None = None,
    real: Bool[Tensor, "B L"] | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "B L N P"], Float[Tensor, "B N P S"]]:
    """The recurrence above, exactly, for any length, in time and memory linear in it; differentiable once.

    Products, sums and states are float32, or float64 where ``x`` is, also under autocast.

    Args:
        x: values of N heads.
        dt: step sizes, at least 0; 0 leaves the state alone.
        A: decay rates, at most 0.
        B: keys; head n takes group n // (N / G).
        C: queries, in groups likewise.
        D: weight of the direct path from x to y; None leaves it out.
        initial_state: the state before the first token; zeros by default.
        real: False at pads: they do not change the state, whatever they hold, and only their own outputs see them.
        chunk: Q, a matter of speed alone; by default what is fastest on the device.

    Returns:
        y, in the dtype of ``x``, and the state behind the last token, float32 or float64.

    Raises:
        ValueError: N is no multiple of G, or ``chunk`` is not positive.
    """
    chunk = chunk or CHUNKS.get(x.device.type, CHUNKS["cuda"])
    if x.shape[2] % B.shape[2] or chunk < 1:
        raise ValueError(
            f"{x.shape[2]} heads in {B.shape[2]} groups by chunks of {chunk}: choose a divisor of the heads"
        )
    x, dt, B = zero_pads(x, dt, B, real)
    if initial_state is None:
        initial_state = zero_state(x, B)
    y, state, _ = torch.ops.vidlab.ssd(x, dt, A, B, C, D, initial_state, chunk)
    return y, state


def zero_pads(
    x: Float[Tensor, "B L N P"],
    dt: Float[Tensor, "B L N"],
    B: Float[Tensor, "B L G S"],
    real: Bool[Tensor, "B L"] | None,
) -> tuple[Float[Tensor, "B L N P"], Float[Tensor, "B L N"], Float[Tensor, "B L G S"]]:
    """Zeros at pads. A step of 0 would be enough for finite numbers, but 0 times NaN is NaN."""
    if real is None:
        return x, dt, B
    pads = ~real[..., None]
    return x.masked_fill(pads[..., None], 0.0), dt.masked_fill(pads, 0.0), B.masked_fill(pads[..., None], 0.0)


def zero_state(x: Float[Tensor, "B L N P"], B: Float[Tensor, "B L G S"]) -> Float[Tensor, "B N P S"]:
    """The state before anything was seen."""
    return x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=state_dtype(x.dtype))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What states are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def span_tokens(x: Tensor, chunk: int) -> int:
    """Tokens of a span: as many chunks as the scratch memory holds, in spans of almost equal length."""
    limit = SPAN_BYTES.get(x.device.type, SPAN_BYTES["cuda"])
    fits = limit // (x.shape[0] * x.shape[2] * chunk * chunk * 4)
    most = max(1, min(fits, MOST_CHUNKS))
    chunks = -(-x.shape[1] // chunk)  # no max or min of the length: it would tie a compiled graph to it
    spans = -(-chunks // most)
    return -(-chunks // spans) * chunk


def _spans(x: Tensor, chunk: int) -> list[slice]:
    length, step = x.shape[1], span_tokens(x, chunk)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@contextmanager
def _float32(x: Tensor) -> Iterator[None]:
    """No autocast and no TF32: the gradient of the steps is a difference of sums that must round alike."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision if x.is_cuda else None
    with torch.autocast(x.device.type, enabled=False):
        try:
            if before is not None:
                matmul.fp32_precision = "ieee"
            yield
        finally:
            if before is not None:
                matmul.fp32_precision = before


# Operators for torch.compile: a graph does not depend on the number of spans, so that lengths may vary in it.
torch.library.define(
    "vidlab::ssd",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state, int chunk)"
    " -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("vidlab::ssd", "CompositeExplicitAutograd")
def _ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states before the spans, (spans, B, N, P, S)."""
    y, entries = torch.empty_like(x, memory_format=torch.contiguous_format), []
    dtype = state_dtype(x.dtype)
    state, spans, chunk = state.to(dtype, copy=True), _spans(x, chunk), min(chunk, x.shape[1])
    scratch = Scratch(x)
    with _float32(x):
        for part in spans:
            span = cut_span(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, chunk, dtype, scratch)
            entries.append(state)
            out, state = span_forward(span, state, scratch)
            y[:, part] = unchunked(out, span.shape, x.shape[2], part.stop - part.start)
    return y, state.clone(), torch.stack(entries) if entries else state.new_empty(0, *state.shape)


torch.library.define(
    "vidlab::ssd_backward",
    "(Tensor dy, Tensor dstate, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor entries,"
    " int chunk)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("vidlab::ssd_backward", "CompositeExplicitAutograd")
def _ssd_backward(
    dy: Tensor, dstate: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    entries: Tensor, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, dt, A, B, C, D (zeros without a direct path) and the first state."""
    dx, ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C))
    dtype, heads = state_dtype(x.dtype), x.shape[2]
    dA, dD = (torch.zeros(heads, dtype=dtype, device=x.device) for _ in range(2))
    dstate, spans, chunk = dstate.to(dtype), _spans(x, chunk), min(chunk, x.shape[1])
    scratch = Scratch(x)
    with _float32(x):
        for part, state in zip(reversed(spans), entries.flip(0), strict=True):
            span = cut_span(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, chunk, dtype, scratch)
            found = span_backward(
                span, state, chunked(dy[:, part], chunk, heads, dtype, scratch, "dy"), dstate, scratch
            )
            length, dstate = part.stop - part.start, found.state
            dx[:, part] = unchunked(found.x, span.shape, heads, length)
            ddt[:, part] = unchunked(found.dt[..., None], span.shape, heads, length)[..., 0]
            dB[:, part] = unchunked(found.B, span.shape, B.shape[2], length)
            dC[:, part] = unchunked(found.C, span.shape, C.shape[2], length)
            dA += found.A.view(span.shape).sum((0, 2))
            if found.D is not None:
                dD += found.D.view(span.shape).sum((0, 2))
    return dx, ddt, dA.to(A.dtype), dB, dC, dD, dstate.clone()


@torch.library.register_fake("vidlab::ssd")
def _ssd_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, spans = state_dtype(x.dtype), -(-x.shape[1] // span_tokens(x, chunk))
    entries = state.new_empty((spans, *state.shape), dtype=dtype)
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=dtype), entries


@torch.library.register_fake("vidlab::ssd_backward")
def _ssd_backward_shapes(
    dy: Tensor, dstate: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    entries: Tensor, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, ddt, dA, dB, dC = (t.new_empty(t.shape) for t in (x, dt, A, B, C))
    return (
        dx,
        ddt,
        dA,
        dB,
        dC,
        A.new_empty(A.shape, dtype=entries.dtype),
        dstate.new_empty(dstate.shape, dtype=entries.dtype),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, state, ctx.chunk = inputs
    ctx.state_dtype = state.dtype
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, entries = ctx.saved_tensors
    dx, ddt, dA, dB, dC, dD, dfirst = torch.ops.vidlab.ssd_backward(dy, dstate, *tensors, entries, ctx.chunk)
    D = tensors[-1]
    return dx, ddt, dA, dB, dC, None if D is None else dD.to(D.dtype), dfirst.to(ctx.state_dtype), None


torch.library.register_autograd("vidlab::ssd", _gradients, setup_context=_keep)
