"""A few chunks of the state-space dual at once: outputs and gradients from batched matrix products.

The letters are those of Dao & Gu 2024 (arXiv 2405.21060), section 6, for one head and one chunk of Q tokens:

    u = dt x,  s = cumsum(dt A),  W = (C B^T) o L with L_ij = exp(s_i - s_j) for i >= j, else 0,
    y = W u + exp(s) o (C H^T) + D x,  S = (exp(s_Q - s) o u)^T B,  H' = exp(s_Q) H + S,

where H is the state before the chunk and H' the one behind it. Everything here is float32 or float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Span:
    """Consecutive chunks of a sequence, heads first; the last chunk is filled up with dt = 0.

    Args:
        x, B, C: (M, Q, P or S), a matrix for each of the M = B N c chunks of all heads.
        dt: (M, Q).
        A: (M, 1).
        D: (M, 1, 1), or None.
        shape: (B, N, c).
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    shape: tuple[int, int, int]


def cut_span(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk: int, dtype: torch.dtype
) -> Span:
    """The span of tokens (B, l, N, ...), with groups repeated for their heads."""
    heads = x.shape[2]
    shape = (x.shape[0], heads, -(-x.shape[1] // chunk))

    def each(value: Tensor) -> Tensor:
        return value.to(dtype)[None, :, None].expand(shape).reshape(-1, 1)

    return Span(
        x=chunked(x, chunk, heads, dtype),
        dt=chunked(dt[..., None], chunk, heads, dtype)[..., 0],
        A=each(A),
        B=chunked(B, chunk, heads, dtype),
        C=chunked(C, chunk, heads, dtype),
        D=None if D is None else each(D)[..., None],
        shape=shape,
    )


def chunked(x: Tensor, chunk: int, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, l, G, d) -> (B N c, Q, d)."""
    if x.shape[1] % chunk:
        x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    x = x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)  # (B, G, c, Q, d)
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)  # (B, N, c, Q, d)
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous().flatten(0, 2)


def unchunked(x: Tensor, shape: tuple[int, int, int], groups: int, length: int) -> Tensor:
    """(B N c, Q, d) -> (B, l, G, d), the sum over the heads of a group."""
    x = x.unflatten(0, shape).permute(0, 2, 3, 1, 4).flatten(1, 2)  # (B, c Q, N, d), no copy
    if groups != x.shape[2]:
        x = x.unflatten(2, (groups, -1)).sum(3)
    return x[:, :length]


@dataclass(frozen=True)
class Decays:
    """How much of what enters a span is left at each place.

    Args:
        within: L, (M, Q, Q).
        since_start: exp(s), (M, Q, 1).
        to_end: exp(s_Q - s), (M, Q, 1).
        totals: log2(e) s_Q, (B N, c).
    """

    within: Tensor
    since_start: Tensor
    to_end: Tensor
    totals: Tensor


def decays(span: Span) -> Decays:
    """All decays of a span. They are powers of two: torch's exp2 is three times faster than its exp on a CPU."""
    sums = (span.dt * (span.A * LOG2_E)).cumsum(1)  # log2(e) s: (M, Q)
    return Decays(
        within=lower_exp2(sums),
        since_start=sums.exp2()[..., None],
        to_end=(sums[:, -1:] - sums).exp2()[..., None],
        totals=sums[:, -1].view(-1, span.shape[2]),
    )


def lower_exp2(sums: Tensor) -> Tensor:
    """2^(s_i - s_j) for i >= j, else 0: (M, n) -> (M, n, n).

    What a later token would give an earlier one is -inf before it is a power, so that no infinity meets a zero. Adding
    is seven times faster than ``masked_fill`` on a CPU.
    """
    later = sums.new_full((sums.shape[1], sums.shape[1]), float("-inf")).triu_(1)
    return (sums[:, :, None] - sums[:, None, :]).add_(later).exp2_()


def pass_states(added: Tensor, totals: Tensor, first: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """H_{k+1} = 2^totals_k H_k + added_k from chunk to chunk, or from the last to the first.

    Args:
        added: (B N, c, P S).
        totals: (B N, c).
        first: the state that is there, (B N, P S).
        backwards: run from the last chunk.

    Returns:
        The state each chunk finds, (B N, c, P S), and the last one, (B N, P S).
    """
    run = states_by_product if added.is_cuda else states_by_loop
    return run(added, totals, first, backwards)


def states_by_loop(added: Tensor, totals: Tensor, first: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """One chunk after the other; on a CPU half the time of the product."""
    found, decay = torch.empty_like(added), totals.exp2()[..., None]
    order = range(added.shape[1])
    for k in reversed(order) if backwards else order:
        found[:, k] = first
        first = torch.addcmul(added[:, k], first, decay[:, k])
    return found, first


def states_by_product(added: Tensor, totals: Tensor, first: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """A product with the matrix of all decays between chunks: on a GPU a loop is a row of tiny kernels."""
    between = lower_exp2(F.pad(totals.cumsum(1), (1, 0)))  # (B N, c + 1, c + 1)
    if backwards:
        states = torch.bmm(between.mT, torch.cat([added, first[:, None]], dim=1))
        return states[:, 1:].contiguous(), states[:, 0]
    states = torch.bmm(between, torch.cat([first[:, None], added], dim=1))
    return states[:, :-1].contiguous(), states[:, -1]


def span_forward(span: Span, state: Tensor) -> tuple[Tensor, Tensor]:
    """y (M, Q, P), and the state behind the span."""
    decay = decays(span)
    weights = torch.bmm(span.C, span.B.mT).mul_(decay.within)  # W: (M, Q, Q)
    u = span.x * span.dt[..., None]
    y = torch.bmm(weights, u)
    before, last = _states_before(span, decay, u.mul_(decay.to_end), state)
    y.baddbmm_(span.C * decay.since_start, before.mT)
    if span.D is not None:
        y.addcmul_(span.x, span.D)
    return y, last.reshape(state.shape)


def _states_before(span: Span, decay: Decays, u_to_end: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """H (M, P, S), and the state behind the span (B N, P S)."""
    added = torch.bmm(u_to_end.mT, span.B)  # S: (M, P, S)
    found, last = pass_states(added.view(*decay.totals.shape, -1), decay.totals, state.flatten(0, 1).flatten(1))
    return found.view(added.shape), last


@dataclass(frozen=True)
class SpanGradients:
    """Gradients of a span's tensors: x, B, C (M, Q, P or S), dt (M, Q), A and D (M,), and of the state before it."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    state: Tensor


def span_backward(span: Span, state: Tensor, dy: Tensor, dstate: Tensor) -> SpanGradients:
    """Gradients, given the state before the span and those of y (M, Q, P) and of the state behind the span.

    y and H' depend on s_i only through what is scaled by exp(s_i) and by exp(-s_j). The first is linear in C_i, the
    second in u_j, and all of H' is scaled by exp(s_Q). So ds_i = C_i . dC_i - u_i . du_i, and + dH' . H' at the last.
    """
    decay = decays(span)
    u = span.x * span.dt[..., None]
    dscores = torch.bmm(dy, u.mT).mul_(decay.within)  # of C B^T: (M, Q, Q)
    du = torch.bmm(torch.bmm(span.C, span.B.mT).mul_(decay.within).mT, dy)  # W^T dy
    dB, dC = torch.bmm(dscores.mT, span.C), torch.bmm(dscores, span.B)
    del dscores  # what is freed stays in the cache, for the next of its size

    u_to_end, dy_since_start = u.mul_(decay.to_end), dy * decay.since_start
    before, last = _states_before(span, decay, u_to_end, state)  # H
    # the recurrence backwards: dH = exp(s_Q) dH' + (exp(s) o dy)^T C
    read = torch.bmm(dy_since_start.mT, span.C).view(*decay.totals.shape, -1)  # (B N, c, P S)
    behind, dfirst = pass_states(read, decay.totals, dstate.flatten(0, 1).flatten(1), backwards=True)  # dH'
    after = torch.cat([before.view(read.shape)[:, 1:], last[:, None]], dim=1)  # H'
    through = after.mul_(behind).sum(-1).flatten()  # dH' . H': (M,)
    behind = behind.view(before.shape)
    del read, after

    dC.baddbmm_(dy_since_start, before)
    dB.baddbmm_(u_to_end, behind)
    du.baddbmm_(span.B * decay.to_end, behind.mT)
    x_du = (span.x * du).sum(-1)  # (M, Q)
    dsums = (span.C * dC).sum(-1) - span.dt * x_du
    dsums[:, -1] += through
    da = dsums.flip(1).cumsum(1).flip(1)  # of dt A
    dx, dD = du.mul_(span.dt[..., None]), None
    if span.D is not None:
        dx, dD = dx.addcmul_(dy, span.D), (dy * span.x).sum((1, 2))
    return SpanGradients(
        x=dx, dt=x_du + span.A * da, A=(span.dt * da).sum(1), B=dB, C=dC, D=dD, state=dfirst.reshape(state.shape)
    )
