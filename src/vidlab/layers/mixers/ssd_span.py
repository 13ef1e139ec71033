"""A few chunks of the state-space dual at once: outputs and gradients from batched matrix products.

The letters are those of Dao & Gu 2024 (arXiv 2405.21060), section 6, for one head and one chunk of Q tokens:

    u = dt x,  s = cumsum(dt A),  W = (C B^T) o L with L_ij = exp(s_i - s_j) for i >= j, else 0,
    y = W u + exp(s) o (C H^T) + D x,  S = (exp(s_Q - s) o u)^T B,  H' = exp(s_Q) H + S,

where H is the state before the chunk and H' the one behind it. Everything here is float32 or float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2_E = math.log2(math.e)


class Scratch:
    """Memory that spans of one call share, so that on a CPU what one leaves in the cache serves the next.

    Fresh tensors instead take a tenth longer where freed memory is kept in the process. On a GPU, whose allocator
    reuses blocks at once, ``None`` stands for a tensor to be made.
    """

    def __init__(self, like: Tensor) -> None:
        self._held: dict[str, Tensor] = {}
        self._fresh = like.is_cuda

    def __call__(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """A tensor of a name, whose contents the last user of it left."""
        if self._fresh:
            return None
        held = self._held.get(name)
        if held is None or held.shape != shape:
            held = self._held[name] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return held


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
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk: int, dtype: torch.dtype,
    scratch: Scratch,
) -> Span:  # fmt: skip
    """The span of tokens (B, l, N, ...), with groups repeated for their heads."""
    heads = x.shape[2]
    shape = (x.shape[0], heads, -(-x.shape[1] // chunk))

    def each(value: Tensor) -> Tensor:
        return value.to(dtype)[None, :, None].expand(shape).reshape(-1, 1)

    return Span(
        x=chunked(x, chunk, heads, dtype, scratch, "x"),
        dt=chunked(dt[..., None], chunk, heads, dtype, scratch, "dt")[..., 0],
        A=each(A),
        B=chunked(B, chunk, heads, dtype, scratch, "B"),
        C=chunked(C, chunk, heads, dtype, scratch, "C"),
        D=None if D is None else each(D)[..., None],
        shape=shape,
    )


def chunked(x: Tensor, chunk: int, heads: int, dtype: torch.dtype, scratch: Scratch, name: str) -> Tensor:
    """(B, l, G, d) -> (B N c, Q, d)."""
    if x.shape[1] % chunk:
        x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    x = x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)  # (B, G, c, Q, d)
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)  # (B, N, c, Q, d)
    held = scratch(name, x.shape, torch.empty(0, dtype=dtype, device=x.device))
    if held is None:
        return x.to(dtype, memory_format=torch.contiguous_format).contiguous().flatten(0, 2)
    return held.copy_(x).flatten(0, 2)


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


def decays(span: Span, scratch: Scratch) -> Decays:
    """All decays of a span. They are powers of two: torch's exp2 is three times faster than its exp on a CPU."""
    sums = (span.dt * (span.A * LOG2_E)).cumsum(1)  # log2(e) s: (M, Q)
    return Decays(
        within=lower_exp2(sums, scratch("within", (*sums.shape, sums.shape[1]), sums)),
        since_start=sums.exp2()[..., None],
        to_end=(sums[:, -1:] - sums).exp2()[..., None],
        totals=sums[:, -1].view(-1, span.shape[2]),
    )


def lower_exp2(sums: Tensor, out: Tensor | None = None) -> Tensor:
    """2^(s_i - s_j) for i >= j, else 0: (M, n) -> (M, n, n).

    What a later token would give an earlier one is -inf before it is a power, so that no infinity meets a zero. Adding
    is seven times faster than ``masked_fill`` on a CPU.
    """
    later = sums.new_full((sums.shape[1], sums.shape[1]), float("-inf")).triu_(1)
    return torch.sub(sums[:, :, None], sums[:, None, :], out=out).add_(later).exp2_()


def pass_states(
    added: Tensor, totals: Tensor, first: Tensor, out: Tensor | None = None, backwards: bool = False
) -> tuple[Tensor, Tensor]:
    """H_{k+1} = 2^totals_k H_k + added_k from chunk to chunk, or from the last to the first.

    Args:
        added: (B N, c, P S).
        totals: (B N, c).
        first: the state that is there, (B N, P S).
        out: where the result goes on a CPU.
        backwards: run from the last chunk.

    Returns:
        The state each chunk finds, (B N, c, P S), and the last one, (B N, P S).
    """
    if out is None:
        return states_by_product(added, totals, first, backwards)
    return states_by_loop(added, totals, first, out, backwards)


def states_by_loop(added: Tensor, totals: Tensor, first: Tensor, out: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """One chunk after the other; on a CPU half the time of the product."""
    decay = totals.exp2()[..., None]
    order = list(range(added.shape[1]))
    if backwards:
        order.reverse()
    out[:, order[0]] = first
    for k, after in pairwise(order):
        torch.addcmul(added[:, k], out[:, k], decay[:, k], out=out[:, after])
    end = order[-1]
    return out, torch.addcmul(added[:, end], out[:, end], decay[:, end])


def states_by_product(added: Tensor, totals: Tensor, first: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """A product with the matrix of all decays between chunks: on a GPU a loop is a row of tiny kernels."""
    between = lower_exp2(F.pad(totals.cumsum(1), (1, 0)))  # (B N, c + 1, c + 1)
    if backwards:
        states = torch.bmm(between.mT, torch.cat([added, first[:, None]], dim=1))
        return states[:, 1:].contiguous(), states[:, 0]
    states = torch.bmm(between, torch.cat([first[:, None], added], dim=1))
    return states[:, :-1].contiguous(), states[:, -1]


def span_forward(span: Span, state: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """y (M, Q, P), and the state behind the span."""
    decay = decays(span, scratch)
    x, square = span.x, decay.within.shape
    weights = torch.bmm(span.C, span.B.mT, out=scratch("scores", square, x)).mul_(decay.within)  # W: (M, Q, Q)
    u = torch.mul(x, span.dt[..., None], out=scratch("u", x.shape, x))
    y = torch.bmm(weights, u, out=scratch("y", x.shape, x))
    before, last = _states_before(span, decay, u.mul_(decay.to_end), state, scratch)
    C_since_start = torch.mul(span.C, decay.since_start, out=scratch("scaled", span.C.shape, x))
    y.baddbmm_(C_since_start, before.mT)
    if span.D is not None:
        y.addcmul_(x, span.D)
    return y, last.reshape(state.shape)


def _states_before(
    span: Span, decay: Decays, u_to_end: Tensor, state: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """H (M, P, S), and the state behind the span (B N, P S)."""
    shape = (len(u_to_end), *state.shape[2:])
    added = torch.bmm(u_to_end.mT, span.B, out=scratch("added", shape, u_to_end))  # S: (M, P, S)
    grouped = added.view(*decay.totals.shape, -1)
    out = scratch("before", grouped.shape, u_to_end)
    found, last = pass_states(grouped, decay.totals, state.flatten(0, 1).flatten(1), out)
    return found.view(shape), last


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


def span_backward(span: Span, state: Tensor, dy: Tensor, dstate: Tensor, scratch: Scratch) -> SpanGradients:
    """Gradients, given the state before the span and those of y (M, Q, P) and of the state behind the span.

    Let s sum dt A over the whole span. All outputs depend on it only through what is scaled by exp(s_i) and by
    exp(-s_j); the first is linear in C_i, the second in u_j, and the state behind the span is scaled by exp(s) of its
    last token. So ds_i = C_i . dC_i - u_i . du_i, and at the last token + dH' . H' of the state behind the span.
    """
    decay = decays(span, scratch)
    x, square, wide = span.x, decay.within.shape, span.B.shape
    u = torch.mul(x, span.dt[..., None], out=scratch("u", x.shape, x))
    weights = torch.bmm(span.C, span.B.mT, out=scratch("scores", square, x)).mul_(decay.within)  # W
    du = torch.bmm(weights.mT, dy, out=scratch("du", x.shape, x))
    dscores = torch.bmm(dy, u.mT, out=scratch("scores", square, x)).mul_(decay.within)  # of C B^T: (M, Q, Q)
    dB = torch.bmm(dscores.mT, span.C, out=scratch("dB", wide, x))
    dC = torch.bmm(dscores, span.B, out=scratch("dC", wide, x))

    u_to_end = u.mul_(decay.to_end)
    before, last = _states_before(span, decay, u_to_end, state, scratch)  # H
    # the recurrence backwards: dH = exp(s_Q) dH' + (exp(s) o dy)^T C
    dy_since_start = torch.mul(dy, decay.since_start, out=scratch("scaled dy", x.shape, x))
    read = torch.bmm(dy_since_start.mT, span.C, out=scratch("added", before.shape, x))
    read = read.view(*decay.totals.shape, -1)  # (B N, c, P S)
    out = scratch("behind", read.shape, x)
    behind, dfirst = pass_states(read, decay.totals, dstate.flatten(0, 1).flatten(1), out, backwards=True)  # dH'
    behind = behind.view(before.shape)

    dC.baddbmm_(dy_since_start, before)
    dB.baddbmm_(u_to_end, behind)
    du.baddbmm_(torch.mul(span.B, decay.to_end, out=scratch("scaled", wide, x)), behind.mT)
    x_du = torch.mul(x, du, out=scratch("scaled dy", x.shape, x)).sum(-1)  # (M, Q)
    C_dC = torch.mul(span.C, dC, out=scratch("scaled", wide, x)).sum(-1)
    dsums = (C_dC - span.dt * x_du).view(len(last), -1)  # (B N, c Q)
    dsums[:, -1] += (last * dstate.view(last.shape)).sum(-1)
    da = dsums.flip(1).cumsum(1).flip(1).view(span.dt.shape)  # of dt A
    dx, dD = du.mul_(span.dt[..., None]), None
    if span.D is not None:
        dx.addcmul_(dy, span.D)
        dD = torch.mul(dy, x, out=scratch("scaled dy", x.shape, x)).sum((1, 2))
    return SpanGradients(
        x=dx, dt=x_du + span.A * da, A=(span.dt * da).sum(1), B=dB, C=dC, D=dD, state=dfirst.reshape(state.shape)
    )
