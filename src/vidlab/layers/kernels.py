"""Attention kernels: one function, softmax(q k^T / sqrt d) v, behind which the fastest installed one works."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from vidlab.errors import UserError

Heads = Float[Tensor, "B L N d"]
Keys = Float[Tensor, "B S N d"]
Mask = Bool[Tensor, "#B #N #L S"]


@runtime_checkable
class AttentionKernel(Protocol):
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""

    def __call__(self, q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
        """(B, L, N, d) from queries, keys and values; ``mask`` is True at keys that may be seen, at least one a row."""
        ...


def attention_kernel(name: str) -> AttentionKernel:
    """The kernel of a name: ``auto``, ``sdpa``, ``xformers`` or ``flex``.

    Raises:
        UserError: an unknown name, or a package or device that is missing.
    """
    if name not in KERNELS:
        raise UserError(f"attention={name}: choose one of {', '.join(KERNELS)}.")
    return KERNELS[name]()


def check_trainable(name: str, accelerator: str) -> None:
    """Refuse a kernel that has no backward pass on an accelerator, before anything is computed.

    Raises:
        UserError: which kernel, and what to use.
    """
    if accelerator == "cpu" and name in NOT_TRAINED_ON_CPU:
        raise UserError(f"attention={name}: {NOT_TRAINED_ON_CPU[name]}. Use attention=auto to train.")


# Measured on a Zen 5 CPU (one thread, bf16, B16 N3 L256 d64): products and softmax written out take 13 ms forward
# and backward, torch's flash kernel 33 ms, since its inner products run in float32. The probabilities are kept for the
# backward pass, so this is only for sequences where they are small.
WRITTEN_OUT_LIMIT_BYTES = 256 * 2**20

# torch's softmax in bf16 takes what is left of a row of scores after whole vectors of 32 one by one: 128 queries a clip
# that read 22 keys take 8.2 ms forward and backward, with ten keys more 5.9 (one core with AVX-512, B32 N3 d64). Below
# 8 keys, or with fewer than two queries a key, padding costs more than it saves.
VECTOR = 32
PADDED_FROM = 8

# CUDA kernels lay the batch and the heads along grid axes of at most this many blocks.
LARGEST_GRID_AXIS = 65535


def auto(q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
    """torch's own kernel; written out on a CPU in bf16 where that is faster. See ``in_padded_groups`` too."""
    keys = -(-k.shape[1] // VECTOR) * VECTOR  # as many as padding may make of them
    probabilities_bytes = q.shape[0] * q.shape[1] * q.shape[2] * keys * q.element_size()
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and probabilities_bytes <= WRITTEN_OUT_LIMIT_BYTES:
        return written_out(q, k, v, mask)
    return sdpa(q, k, v, mask)


def written_out(q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
    """Products and softmax one after the other."""
    factor = q.shape[-1] ** -0.5
    # a compiled block is for any number of keys, and its softmax leaves no such rest
    if PADDED_FROM <= k.shape[1] <= q.shape[1] // 2 and not torch.compiler.is_compiling():
        k, v, mask = _padded_keys(k * factor, v, mask)
    else:
        q = q * factor
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, L or S, d)
    scores = q @ k.mT  # (B, N, L, S)
    if mask is not None:
        # adding is faster than filling, and needs nothing in the backward pass
        scores = scores + scores.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def _padded_keys(
    k: Keys, v: Keys, mask: Mask | None
) -> tuple[Float[Tensor, "B padded N d"], Float[Tensor, "B padded N d"], Bool[Tensor, "#B #N #L padded"] | None]:
    """Keys in a number that fills vectors, the new ones not to be seen."""
    missing = -k.shape[1] % VECTOR
    if not missing:
        return k, v, mask
    seen = k.new_ones(1, 1, 1, k.shape[1], dtype=torch.bool) if mask is None else mask
    return F.pad(k, (0, 0, 0, 0, 0, missing)), F.pad(v, (0, 0, 0, 0, 0, missing)), F.pad(seen, (0, missing))


def sdpa(q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
    """``torch.nn.functional.scaled_dot_product_attention``."""
    if q.is_cuda and max(q.shape[0], q.shape[2]) > LARGEST_GRID_AXIS:
        return _in_pieces(q, k, v, mask)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _in_pieces(q: Heads, k: Keys, v: Keys, mask: Mask | None) -> Heads:
    axis = 0 if q.shape[0] > LARGEST_GRID_AXIS else 2
    count = -(-q.shape[axis] // LARGEST_GRID_AXIS)
    masks: list[Tensor | None] = [mask] * count
    if mask is not None and mask.shape[axis // 2] > 1:
        masks = list(mask.chunk(count, dim=axis // 2))
    parts = zip(q.chunk(count, axis), k.chunk(count, axis), v.chunk(count, axis), masks, strict=True)
    return torch.cat([sdpa(*part) for part in parts], dim=axis)


def _xformers() -> AttentionKernel:
    if find_spec("xformers") is None:
        raise UserError(
            "attention=xformers: the package xformers is not installed. Install a set of requirements-gpu.txt, "
            "or use attention=auto."
        )
    from xformers.ops import memory_efficient_attention

    def kernel(q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
        if _on_cpu(q):
            raise UserError(f"attention=xformers: {NOT_TRAINED_ON_CPU['xformers']}. Use attention=auto.")
        bias = None if mask is None else _aligned_bias(mask, q, k)
        return memory_efficient_attention(q.contiguous(), k.contiguous(), v.contiguous(), attn_bias=bias)

    return kernel


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _aligned_bias(mask: Mask, q: Heads, k: Keys) -> Float[Tensor, "B N L S"]:
    """0 and -inf, in memory whose rows start at multiples of eight elements, as xformers requires."""
    batch, length, heads, _ = q.shape
    keys = k.shape[1]
    bias = q.new_zeros(batch, heads, length, -(-keys // 8) * 8)[..., :keys]
    return bias.masked_fill_(~mask, float("-inf"))


def flex(q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Heads:
    """``torch.nn.attention.flex_attention``, compiled on a GPU; counted as ``sdpa``, whose FLOPs it has."""
    if q.is_meta:
        return sdpa(q, k, v, mask)
    if _on_cpu(q) and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        check_trainable("flex", "cpu")
    from vidlab.layers.compilation import flex as compiled

    return compiled.flex(q, k, v, mask)


def in_padded_groups(kernel: AttentionKernel, q: Heads) -> bool:
    """Whether a kernel leaves groups that are padded to flex attention, which needs no mask in memory."""
    from vidlab.layers.compilation.flex import runs_compiled

    return kernel in (auto, flex) and runs_compiled(q)


KERNELS: dict[str, Callable[[], AttentionKernel]] = {
    "auto": lambda: auto,
    "sdpa": lambda: sdpa,
    "xformers": _xformers,
    "flex": lambda: flex,
}

NOT_TRAINED_ON_CPU = {
    "flex": "torch has no backward pass of it on a CPU",
    "xformers": "its kernels run on CUDA GPUs only",
}
