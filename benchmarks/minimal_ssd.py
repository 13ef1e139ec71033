"""A straightforward SSD in PyTorch, what ``ssd`` is measured against: every chunk at once, by einsum and autograd.

It follows the idea of listing 1 of Dao & Gu 2024 (arXiv 2405.21060): the decays within all chunks are built whole as
segment sums, and one einsum over queries, keys, decays and values gives what chunks contribute to themselves.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_sums(a: Tensor) -> Tensor:
    """a_{j+1} + ... + a_i for i >= j, else -inf: (..., Q) -> (..., Q, Q)."""
    size = a.shape[-1]
    spread = a[..., :, None].expand(*a.shape, size)
    lower = torch.ones(size, size, dtype=torch.bool, device=a.device)
    sums = spread.masked_fill(~lower.tril(-1), 0.0).cumsum(-2)
    return sums.masked_fill(~lower.tril(), float("-inf"))


def minimal_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = 64) -> Tensor:
    """y (B, L, N, P) for as many groups as heads; letters as in ``vidlab.layers.mixers.ssd``."""
    length = x.shape[1]
    rest = -length % chunk
    values, a = x * dt[..., None], dt * A
    B, C = B.to(values), C.to(values)  # of half precision inputs with steps in float32, products are in float32
    values, B, C = (F.pad(t, (0, 0, 0, 0, 0, rest)).unflatten(1, (-1, chunk)) for t in (values, B, C))
    a = F.pad(a, (0, 0, 0, rest)).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2)  # (B, N, c, Q)
    sums = a.cumsum(-1)
    within = torch.einsum("bcihs,bcjhs,bhcij,bcjhp->bcihp", C, B, segment_sums(a).exp(), values)
    added = torch.einsum("bcjhs,bhcj,bcjhp->bchps", B, (sums[..., -1:] - sums).exp(), values)
    added = torch.cat([torch.zeros_like(added[:, :1]), added], dim=1)
    between = segment_sums(F.pad(sums[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchps->bzhps", between, added)[:, :-1]
    before = torch.einsum("bcihs,bchps,bhci->bcihp", C, states, sums.exp())
    return (within + before).flatten(1, 2)[:, :length].to(x) + x * D[:, None]
