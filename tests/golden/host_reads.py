"""Which numbers of a training step the host reads: on a GPU each read would wait for all that is queued there."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

ATEN = torch.ops.aten
# operators whose result, or its shape, the host must know
READING = {
    ATEN._local_scalar_dense.default, ATEN.equal.default, ATEN.is_nonzero.default, ATEN.nonzero.default,
    ATEN.masked_select.default, ATEN._unique2.default, ATEN.repeat_interleave.Tensor,
}  # fmt: skip
# methods that read memory of a CPU, or bring it there, without an operator
METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
FORGET = {ATEN.empty_like.default}


class OnDevice:
    """Tensors that would be on the device: those of the batch and the weights, and all that is computed from them."""

    def __init__(self) -> None:
        self.known = WeakIdKeyDictionary()
        self.reads: list[str] = []

    def add(self, tensors: Iterable[Any]) -> None:
        """Take tensors among a structure's leaves for the device's."""
        for one in tensors:
            if isinstance(one, Tensor):
                self.known[one] = True

    def has(self, arguments: Any) -> bool:
        """Whether one is among them."""
        return any(isinstance(one, Tensor) and one in self.known for one in tree_leaves(arguments))

    def note(self, what: object) -> None:
        """A read, and the line of vidlab that asked for it."""
        lines = [line for line in traceback.extract_stack() if "/vidlab/" in line.filename]
        self.reads.append(f"{what} at {lines[-1].filename}:{lines[-1].lineno}" if lines else f"{what}")


class _Operators(TorchDispatchMode):
    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = self.device.has((args, kwargs))
        if there and (func in READING or (func is ATEN.index.Tensor and _by_truth(args[1]))):
            self.device.note(func)
        found = func(*args, **(kwargs or {}))
        if there and func not in FORGET:
            self.device.add(tree_leaves(found))
        return found


class _Methods(TorchFunctionMode):
    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS and self.device.has(args):
            self.device.note(func)
        return func(*args, **(kwargs or {}))


def _by_truth(indices: Any) -> bool:
    return any(one is not None and one.dtype == torch.bool for one in indices)


@contextmanager
def watched(*tensors: Iterable[Tensor]) -> Iterator[OnDevice]:
    """Note what is read of the tensors and of all that is computed from them."""
    device = OnDevice()
    for some in tensors:
        device.add(some)
    with _Operators(device), _Methods(device):
        yield device
