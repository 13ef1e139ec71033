import math
from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def by_definition() -> Callable[..., torch.Tensor]:
    """Attention from its formula."""

    def by_definition(q, k, v, mask=None):
        """softmax(q k^T / sqrt d) v with one loop per clip and head, in double precision."""
        out = torch.empty(q.shape, dtype=torch.float64)
        for clip in range(q.shape[0]):
            keep = slice(None) if mask is None else mask[clip].nonzero().flatten()
            for head in range(q.shape[2]):
                a, b, c = (x[clip, :, head].double() for x in (q, k, v))
                weights = (a @ b[keep].T / math.sqrt(q.shape[-1])).exp()
                out[clip, :, head] = weights / weights.sum(-1, keepdim=True) @ c[keep]
        return out

    return by_definition
