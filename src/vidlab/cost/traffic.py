"""Bytes that operators read from and write to memory, counted as they are dispatched."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

aten = torch.ops.aten

# Results that nothing is computed for.
FREE = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.lift_fresh)


@dataclass(frozen=True)
class Traffic:
    """What some operators move.

    Args:
        products: bytes read and written by matrix products and convolutions.
        attention: those of attention kernels.
        other: those of everything else: norms, modulation, positions, activations, casts, copies, sums.
        kernels: operators that move anything.
    """

    products: int = 0
    attention: int = 0
    other: int = 0
    kernels: int = 0

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.products + self.attention + self.other

    def __add__(self, more: "Traffic") -> "Traffic":
        return Traffic(
            self.products + more.products,
            self.attention + more.attention,
            self.other + more.other,
            self.kernels + more.kernels,
        )


class TrafficCounter(TorchDispatchMode):
    """Counts, for each operator, the bytes of its tensor arguments and results: what it moves if no cache helps it.

    A view moves nothing. An operator counts as one kernel, each argument once, and an expanded one at the size of what
    is really there. Works on the meta device, where no memory is touched.

    Args:
        attention: operators of attention kernels.

    Attributes:
        traffic: so far.
        by_operator: bytes, by the name of the operator.
    """

    def __init__(self, attention: Sequence[Any] = ()) -> None:
        super().__init__()
        self.traffic = Traffic()
        self.by_operator: dict[str, int] = {}
        self._attention = tuple(attention)
        self._paused = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if self._paused or operator in FREE or func.is_view:
            return out
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not (made or func._schema.is_mutable) or _is_hidden_view(func, read, made):
            return out
        self._count(operator, sum(map(moved_bytes, read)) + sum(map(moved_bytes, made)))
        return out

    def add(self, name: str, traffic: Traffic) -> None:
        """Count what an operator of this name is known to move."""
        self.traffic += traffic
        self.by_operator[name] = self.by_operator.get(name, 0) + traffic.bytes

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts inside, such as what stands for a kernel whose traffic is known."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _count(self, operator: Any, moved: int) -> None:
        name = str(operator).rpartition(".")[2]
        self.by_operator[name] = self.by_operator.get(name, 0) + moved
        if operator in self._attention:
            self.traffic += Traffic(attention=moved, kernels=1)
        elif operator in flop_registry:
            self.traffic += Traffic(products=moved, kernels=1)
        else:
            self.traffic += Traffic(other=moved, kernels=1)


def moved_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor: axes that it was expanded along hold none."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or size == 0 else 1
    return count * tensor.element_size()


def _is_hidden_view(func: Any, read: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    """Whether a result lies in the memory of an argument that the operator does not change, as ``_unsafe_view``'s."""
    if func._schema.is_mutable or not made:
        return False
    there = {tensor.untyped_storage()._cdata for tensor in read}
    return all(tensor.untyped_storage()._cdata in there for tensor in made)
