"""How much attention maps change from frame to frame, exactly, without ever holding the maps of a clip."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one map of a chunk: on a CPU three of them stay in its cache.
CHUNK_CPU = 2**19
CHUNK_GPU = 2**25

Frames = Float[Tensor, "T M L d"]


def attention_variation(
    q: Float[Tensor, "B T L N d"], k: Float[Tensor, "B T L N d"], chunk: int | None = None
) -> Float[Tensor, ""]:
    """sum_j mean |A_j - A_(j-1)| over neighboring frames of the maps A_j = softmax(q_j k_j^T / sqrt(d)).

    The mean is over clips, heads, queries and keys. Maps are made for a chunk of queries at a time, a frame after the
    other: softmax is by row, so this is exact. Where gradients are wanted they are computed in the same pass, since
    that of frame j needs no more than the signs of its two differences, and only scaled in the backward pass. Computed
    in float32, or in float64 for float64; the second derivative is not defined.

    Args:
        q, k: queries and keys of T frames of L tokens; any float dtype.
        chunk: queries at a time; None takes as many as suit the device.
    """
    answer: Tensor = _AttentionVariation.apply(q, k, chunk)
    return answer


class _AttentionVariation(torch.autograd.Function):
    """The variation, and its gradients worked out on the way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, chunk: int | None) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            sweep = _Sweep(_by_frame(q), _by_frame(k), wanted)
            length = q.shape[2]
            step = chunk or max(1, (CHUNK_CPU if q.device.type == "cpu" else CHUNK_GPU) // (sweep.maps * length))
            total = sum((sweep.rows(at, min(at + step, length)) for at in range(0, length, step)), sweep.zero())
        count = sweep.maps * length**2
        if wanted:
            ctx.save_for_backward(_as_before(sweep.d_q.div_(count), q), _as_before(sweep.d_k.div_(count), k))
            ctx.dtypes = q.dtype, k.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        # the incoming gradient, such as a loss scale, comes before rounding to half precision
        d_q, d_k = ((gradient * part).to(dtype) for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return d_q, d_k, None


class _Sweep:
    """Walks the frames of a chunk of queries with three maps in memory."""

    def __init__(self, q: Frames, k: Frames, gradients: bool) -> None:
        self.scale = 1 / math.sqrt(q.shape[-1])
        self.q, self.k = q * self.scale, k
        self.frames, self.maps = q.shape[0], q.shape[1]
        self.gradients = gradients
        if gradients:
            self.d_q, self.d_k = torch.zeros_like(q), torch.zeros_like(k)

    def zero(self) -> Tensor:
        """No variation yet."""
        return self.q.new_zeros(())

    def rows(self, start: int, stop: int) -> Tensor:
        """Summed variation of the rows of these queries; their gradients are added to ``d_q`` and ``d_k``."""
        total, earlier = self.zero(), self._map(0, start, stop)
        since: Tensor | None = None  # sgn(A_j - A_(j-1)) of the earlier frame j
        for frame in range(1, self.frames):
            later = self._map(frame, start, stop)  # (M, rows, L)
            change = later - earlier
            total += torch.linalg.vector_norm(change, ord=1, dim=-1).sum()
            if self.gradients:
                sign = change.sign_()
                # G_j = sgn(A_j - A_(j-1)) - sgn(A_(j+1) - A_j)
                self._add(frame - 1, start, stop, earlier, -sign if since is None else since.sub_(sign))
                since = sign
            earlier = later
        if since is not None:
            self._add(self.frames - 1, start, stop, earlier, since)
        return total

    def _map(self, frame: int, start: int, stop: int) -> Tensor:
        scores = torch.bmm(self.q[frame, :, start:stop], self.k[frame].transpose(1, 2))  # (M, rows, L)
        return torch.softmax(scores, dim=-1)

    def _add(self, frame: int, start: int, stop: int, attention: Tensor, slope: Tensor) -> None:
        """dS = A (G - rowsum(G A)); dQ = dS K / sqrt(d); dK = dS^T Q / sqrt(d), whose scale is in ``self.q``."""
        d_scores = slope.mul_(attention)  # (M, rows, L)
        d_scores.addcmul_(attention, d_scores.sum(dim=-1, keepdim=True), value=-1)
        self.d_q[frame, :, start:stop] = torch.bmm(d_scores, self.k[frame]).mul_(self.scale)
        self.d_k[frame].baddbmm_(d_scores.transpose(1, 2), self.q[frame, :, start:stop])  # (M, L, d)


def _by_frame(x: Float[Tensor, "B T L N d"]) -> Frames:
    x = x if x.dtype == torch.float64 else x.float()
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()  # (T, M, L, d) with M = B N


def _as_before(x: Frames, like: Float[Tensor, "B T L N d"]) -> Float[Tensor, "B T L N d"]:
    heads = like.shape[3]
    return x.unflatten(1, (-1, heads)).permute(1, 0, 3, 2, 4)  # (B, T, L, N, d)
