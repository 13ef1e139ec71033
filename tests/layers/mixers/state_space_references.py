"""State spaces one token at a time, from their formulas."""

import torch


def recurrence(x, dt, A, B, C, D=None, state=None):
    """Mamba-2: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t; (y, last h)."""
    each = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(each, dim=2), C.repeat_interleave(each, dim=2)
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        entering = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = (dt[:, t] * A).exp()[..., None, None] * state + entering
        direct = 0 if D is None else D[:, None] * x[:, t]
        outputs.append((state * C[:, t, :, None]).sum(-1) + direct)
    return torch.stack(outputs, dim=1), state


def selective_scan(x, dt, A, B, C, D):
    """Mamba-1 (Gu & Dao 2023, algorithm 2): a step for each channel, decay rates for each channel and state.

    Args:
        x, dt: (B, L, E).
        A: (E, S).
        B, C: (B, L, S).
        D: (E,).
    """
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        state = (dt[:, t, :, None] * A).exp() * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1)


def inputs(length, heads=4, groups=2, size=5, states=3, batch=2, dtype=torch.float64, decay=4.0):
    """x, dt, A, B, C, D and a first state that want gradients."""
    parts = (
        torch.randn(batch, length, heads, size),
        torch.rand(batch, length, heads),
        -decay * torch.rand(heads),
        torch.randn(batch, length, groups, states),
        torch.randn(batch, length, groups, states),
        torch.randn(heads),
        torch.randn(batch, heads, size, states),
    )
    return [part.to(dtype).requires_grad_() for part in parts]
