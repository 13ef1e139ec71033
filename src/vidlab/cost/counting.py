"""Counts the FLOPs of matrix products and convolutions that run on the meta device."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

aten = torch.ops.aten

# Products of activations with activations, which are attention's where no kernel does them in one.
BATCHED = (aten.bmm, aten.baddbmm)


def _alike(first: Tensor, *others: Any) -> Tensor:
    """Elementwise: what the arguments broadcast to."""
    shape: Sequence[int] = first.shape
    for other in others:
        if isinstance(other, Tensor) and other.shape != shape:
            pairs = zip_longest(reversed(shape), reversed(other.shape), fillvalue=1)
            shape = [b if a == 1 else a for a, b in pairs][::-1]
    return _empty(first, shape)


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _layer_norm(x: Tensor, normalized: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    stats = (*x.shape[: -len(normalized)], *[1] * len(normalized))
    return _empty(x, x.shape), _empty(x, stats), _empty(x, stats)


def _layer_norm_backward(
    dy: Tensor, x: Tensor, normalized: Any, mean: Any, rstd: Any, w: Any, b: Any, wanted: Any
) -> Any:
    return tuple(_empty(x, one.shape) if want else None for one, want in zip((x, w, b), wanted, strict=True))


def _group_norm(
    x: Tensor, w: Any, b: Any, n: int, channels: int, size: int, groups: int, *_: Any
) -> tuple[Tensor, ...]:
    return _empty(x, x.shape), _empty(x, (n, groups)), _empty(x, (n, groups))


def _group_norm_backward(dy: Any, x: Tensor, mean: Any, rstd: Any, w: Any, n: int, channels: int, *rest: Any) -> Any:
    shapes = (x.shape, (channels,), (channels,))
    return tuple(_empty(x, shape) if want else None for shape, want in zip(shapes, rest[-1], strict=True))


# Results on the meta device, given arguments of one dtype. The rules by which torch finds them there are written in
# Python, and take most of the time of a pass; what is not here goes by them.
RESULTS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((
        aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar,
        aten.neg.default, aten.silu.default, aten.silu_backward.default, aten.gelu.default, aten.gelu_backward.default,
        aten.sigmoid.default, aten.sigmoid_backward.default, aten.tanh.default, aten.tanh_backward.default,
        aten.exp.default, aten.rsqrt.default, aten.pow.Tensor_Scalar, aten.addcmul.default, aten._safe_softmax.default,
        aten._softmax_backward_data.default,
    ), _alike),
    aten.addmm.default: lambda bias, a, b: _empty(a, (a.shape[0], b.shape[1])),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
}  # fmt: skip


class ProductCounter(TorchDispatchMode):
    """Counts operators by the formulas of PyTorch's ``FlopCounterMode``; a few times faster than that.

    Args:
        formulas: of further operators: called with shapes in place of tensors.

    Attributes:
        total: FLOPs so far.
        batched: those of ``BATCHED``.
    """

    def __init__(self, formulas: Mapping[Any, Callable[..., int]] | None = None) -> None:
        super().__init__()
        self.total = self.batched = 0
        self._formulas = formulas or {}

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = func in RESULTS and _of_one_dtype([*args, *kwargs.values()])
        out = RESULTS[func](*args) if known else func(*args, **kwargs)
        operator = func._overloadpacket
        if operator in self._formulas:
            self.total += self._formulas[operator](*map(_shape, args), **kwargs)
        elif operator in flop_registry:
            flops = flop_registry[operator](*args, **kwargs, out_val=out)
            self.total += flops
            self.batched += flops if operator in BATCHED else 0
        return out


def _shape(argument: Any) -> Any:
    return argument.shape if isinstance(argument, Tensor) else argument


def _of_one_dtype(arguments: Sequence[Any]) -> bool:
    """Whether all tensors are on the meta device and of one floating-point dtype, and no other is asked for."""
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    dtypes = {one.dtype for one in tensors} | {one for one in arguments if isinstance(one, torch.dtype)}
    return len(dtypes) == 1 and dtypes.pop().is_floating_point and all(one.is_meta for one in tensors)
