"""What a CUDA GPU does with a model under autocast, on devices that are none: dtypes and kernels, no numbers.

Autocast has no rules for the meta device, and the CPU's are not the GPU's: there norms return float32. The lists are
those of torch 2.13 (``AT_FORALL_LOWER_PRECISION_FP``, ``AT_FORALL_FP32`` and ``AT_FORALL_PROMOTE``), as far as
models here use them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from inductor_count import as_if_compiling, counted
from vidlab.cost.traffic import TrafficCounter
from vidlab.layers.compilation.fused import Fused

LOWER: tuple[Callable[..., Any], ...] = (
    F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm, torch.addmm, F.conv1d, F.conv2d,
    F.conv3d,
)  # fmt: skip
FLOAT32: tuple[Callable[..., Any], ...] = (
    F.layer_norm, F.rms_norm, F.group_norm, torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp, F.softplus,
    Tensor.softmax, F.softmax, Tensor.sum, torch.sum, Tensor.cumsum, torch.cumsum, Tensor.pow, F.mse_loss,
)  # fmt: skip
PROMOTED: tuple[Callable[..., Any], ...] = (torch.addcmul, Tensor.addcmul, torch.addcdiv)


@torch.library.custom_op("vidlab_traffic::attention", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A fused attention kernel on (B, N, L, d): the result and one float32 number per row."""
    raise NotImplementedError


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("vidlab_traffic::attention_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, rows: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients."""
    raise NotImplementedError


@attention_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, rows: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, mask = inputs
    ctx.save_for_backward(q, k, v, *output, mask)


def _differentiate(ctx: Any, dy: Tensor, _: Any) -> Any:
    q, k, v, y, rows, mask = ctx.saved_tensors
    return *attention_backward(dy, q, k, v, y, rows, mask), None


attention.register_autograd(_differentiate, setup_context=_keep)
ATTENTION_OPERATORS = (torch.ops.vidlab_traffic.attention, torch.ops.vidlab_traffic.attention_backward)


class CUDARules(TorchFunctionMode):
    """Casts arguments as autocast on a CUDA GPU does, and takes the kernels that a GPU takes.

    Args:
        dtype: of autocast; None casts nothing, as a model whose weights are of the computing dtype has it.
        counter: of the traffic of functions that are one kernel (``vidlab.layers.compilation.fused``).
    """

    def __init__(self, dtype: torch.dtype | None = torch.bfloat16, counter: TrafficCounter | None = None) -> None:
        super().__init__()
        self.dtype, self.counter = dtype, counter
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}  # weights are cast once, as autocast's cache has it

    @override
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        kernel = getattr(func, "__self__", None)
        if isinstance(kernel, Fused):
            return self._one_kernel(kernel.function, args)
        casts = self.dtype is not None and torch.is_autocast_enabled("cuda")
        if func is F.scaled_dot_product_attention:
            return self._attend(casts, *args, **kwargs)
        if casts and func in LOWER:
            args, kwargs = tree_map(self._lower, (tuple(args), kwargs))
        elif casts and func in FLOAT32:
            args, kwargs = tree_map(_to_float32, (tuple(args), kwargs))
        elif casts and func in PROMOTED:
            args, kwargs = _promoted(tuple(args), kwargs)
        if func is F.rms_norm:
            return _rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype != torch.float32:
            return leaf
        assert self.dtype is not None
        if not leaf.is_leaf or not leaf.requires_grad:
            return leaf.to(self.dtype)
        if id(leaf) not in self._cast:
            self._cast[id(leaf)] = leaf, leaf.to(self.dtype)
        return self._cast[id(leaf)][1]

    def _one_kernel(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        if self.counter is None:
            with self:
                return function(*args)

        def as_on_a_gpu(*inputs: Any) -> Any:
            with self:
                return function(*inputs)

        # autocast's cache is of what runs, not of what is traced
        self._cast, kept = {}, self._cast
        with as_if_compiling(), self.counter.paused():
            made = counted(as_on_a_gpu, partial(self.counter.add, function.__name__), self.counter.paused)(*args)
        self._cast = kept
        return made

    def _attend(self, casts: bool, *args: Any, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        q, k, v = tree_map(self._lower, args[:3]) if casts else args[:3]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
        return attention(q, k, v, attn_mask)[0]


def _to_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16) else leaf


def _promoted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wide = any(tensor.dtype == torch.float32 for tensor in tensors)
    return tree_map(_to_float32, (args, kwargs)) if wide else (args, kwargs)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """The one kernel that a GPU has for it."""
    result: Tensor = torch.ops.aten._fused_rms_norm(x, list(shape), weight, eps)[0]
    return result
