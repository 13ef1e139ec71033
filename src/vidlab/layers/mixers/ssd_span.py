"""A few chunks of the state-space dual at once: outputs and gradients from batched matrix products.

The letters are those of Dao & Gu 2024 (arXiv 2405.21060), section 6, for one head and one chunk of Q tokens:

    u = dt x,  s = cumsum(dt A),  W = (C B^T) o L with L_ij = exp(s_i - s_j) for i >= j, else 0,
    y = W u + exp(s) o (C H^T),  S = (exp(s_Q - s) o u)^T B,  H' = exp(s_Q) H + S,

where H is the state before the chunk and H' the one behind it. Everything here is float32 or float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Span:
    """Consecutive chunks of a sequence, heads first; the last chunk is filled up with dt = 0.

    Args:
        x, B, C: (M, Q, P or S), a matrix for each of the M = B N c chunks of all heads.
        dt: (M, Q).
        rates: A of each matrix, (M, 1).
        shape: (B, N, c).
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    rates: Tensor
    shape: tuple[int, int, int]


def cut_span(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, dtype: torch.dtype) -> Span:
    """The span of tokens (B, l, N, ...), with groups repeated for their heads."""
    heads, chunks = x.shape[2], -(-x.shape[1] // chunk)
    shape = (x.shape[0], heads, chunks)
    return Span(
        x=chunked(x, chunk, heads, dtype),
        dt=chunked(dt[..., None], chunk, heads, dtype)[..., 0],
        B=chunked(B, chunk, heads, dtype),
        C=chunked(C, chunk, heads, dtype),
        rates=A.to(dtype)[None, :, None].expand(shape).reshape(-1, 1),
        shape=shape,
    )


def chunked(x: Tensor, chunk: int, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, l, G, d) -> (B N c, Q, d)."""
    if x.shape[1] % chunk:
        x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    x = x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)  # (B, G, c, Q, d)
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)  # (B, N, c, Q, d)
    return x.to(dtype).flatten(0, 2).contiguous()


def unchunked(x: Tensor, shape: tuple[int, int, int], groups: int, length: int) -> Tensor:
    """(B N c, Q, d) -> (B, l, G, d), the sum over the heads of a group."""
    x = x.unflatten(0, shape).permute(0, 2, 3, 1, 4).flatten(1, 2)  # (B, c Q, N, d)
    if groups != x.shape[2]:
        x = x.unflatten(2, (groups, -1)).sum(3)
    return x[:, :length]


@dataclass(frozen=True)
class Decays:
    """How much of what enters a span is left at each place.

    Args:
        sums: s, (M, Q).
        within: L, (M, Q, Q).
        since_start: exp(s), (M, Q, 1).
        to_end: exp(s_Q - s), (M, Q, 1).
        between: from behind chunk j - 1 (the state before the span for j = 0) to before chunk i (behind the span for
            i = c), (B N, c + 1, c + 1).
    """

    within: Tensor
    since_start: Tensor
    to_end: Tensor
    between: Tensor


def decays(span: Span) -> Decays:
    """All decays of a span; what a later token would give an earlier one is -inf before it is 0."""
    sums = (span.dt * span.rates).cumsum(1)  # (M, Q)
    totals = sums[:, -1].unflatten(0, span.shape).flatten(0, 1)  # (B N, c)
    return Decays(
        within=lower_exp(sums),
        since_start=sums.exp()[..., None],
        to_end=(sums[:, -1:] - sums).exp()[..., None],
        between=lower_exp(F.pad(totals.cumsum(1), (1, 0))),
    )


def lower_exp(sums: Tensor) -> Tensor:
    """exp(s_i - s_j) for i >= j, else 0: (M, n) -> (M, n, n)."""
    later = torch.ones(sums.shape[1], sums.shape[1], dtype=torch.bool, device=sums.device).triu(1)
    return (sums[:, :, None] - sums[:, None, :]).masked_fill_(later, float("-inf")).exp_()


def entering_states(span: Span, decay: Decays, u_to_end: Tensor, state: Tensor) -> Tensor:
    """H before each chunk and behind the last: (B N, c + 1, P S), from the state before the span."""
    added = torch.bmm(u_to_end.mT, span.B).view(decay.between.shape[0], -1, state[0, 0].numel())  # S: (B N, c, P S)
    return torch.bmm(decay.between, torch.cat([state.view(len(added), 1, -1), added], dim=1))


def span_forward(span: Span, state: Tensor) -> tuple[Tensor, Tensor]:
    """y without the direct path (M, Q, P), and the state behind the span."""
    decay = decays(span)
    u = span.x * span.dt[..., None]
    states = entering_states(span, decay, u * decay.to_end, state)
    before = states[:, :-1].reshape(-1, *state.shape[2:])  # (M, P, S)
    weights = torch.bmm(span.C, span.B.mT).mul_(decay.within)  # W: (M, Q, Q)
    y = torch.bmm(span.C, before.mT).mul_(decay.since_start).baddbmm_(weights, u)
    return y, states[:, -1].reshape(state.shape).clone()


@dataclass(frozen=True)
class SpanGradients:
    """Gradients of a span's tensors, in their shapes, and of the state before it."""

    u: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    rates: Tensor
    state: Tensor


def span_backward(span: Span, state: Tensor, dy: Tensor, dstate: Tensor) -> SpanGradients:
    """Gradients, given those of y (M, Q, P) and of the state behind the span.

    With a = dt A, y and H' depend on s_i only through what is scaled by exp(s_i) and by exp(-s_j): the first is linear
    in C_i, the second in u_j. So ds_i = C_i . dC_i - u_i . du_i, and exp(s_Q) adds dH' . H' to the last.
    """
    decay = decays(span)
    u = span.x * span.dt[..., None]
    u_to_end, dy_since_start = u * decay.to_end, dy * decay.since_start
    states = entering_states(span, decay, u_to_end, state)
    before = states[:, :-1].reshape(-1, *state.shape[2:])  # (M, P, S)

    # the recurrence of the states, backwards: dH = exp(s_Q) dH' + (exp(s) o dy)^T C
    read = torch.bmm(dy_since_start.mT, span.C).view(len(states), -1, states.shape[-1])  # (B N, c, P S)
    dstates = torch.bmm(decay.between.mT, torch.cat([read, dstate.reshape(len(states), 1, -1)], dim=1))
    behind = dstates[:, 1:].reshape(before.shape)  # dH': (M, P, S)
    through = (dstates[:, 1:] * states[:, 1:]).sum(-1).flatten()  # dH' . H': (M,)

    weights = torch.bmm(span.C, span.B.mT).mul_(decay.within)  # W
    dscores = torch.bmm(dy, u.mT).mul_(decay.within)  # of C B^T: (M, Q, Q)
    du = torch.bmm(span.B, behind.mT).mul_(decay.to_end).baddbmm_(weights.mT, dy)
    dB = torch.bmm(u_to_end, behind).baddbmm_(dscores.mT, span.C)
    dC = torch.bmm(dy_since_start, before).baddbmm_(dscores, span.B)

    x_du = (span.x * du).sum(-1)  # (M, Q)
    dsums = (span.C * dC).sum(-1) - span.dt * x_du
    dsums[:, -1] += through
    da = dsums.flip(1).cumsum(1).flip(1)
    return SpanGradients(
        u=du,
        dt=x_du + span.rates * da,
        B=dB,
        C=dC,
        rates=(span.dt * da).sum(1),
        state=dstates[:, 0].reshape(state.shape),
    )
