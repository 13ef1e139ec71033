"""Activation offload: what the backward pass will need lies in main memory until then."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 2**20


class _Kept:
    """A block of memory that was moved away, and its copy on the device while several operations need it.

    Args:
        home: what ``ActivationOffload.away`` made of it.
        device: where it is needed.
    """

    def __init__(self, home: Any, device: torch.device) -> None:
        self.home, self.device = home, device
        self.uses = 0
        self.returned: Tensor | None = None


class ActivationOffload:
    """Moves what a forward pass keeps for its backward pass to main memory, and back when it is needed.

    Values and strides return as they were, so that losses and gradients are those without it, to the last bit. A block
    of memory is moved once, however many operations keep it or views of it. Weights stay, and their copies in another
    type, and blocks below ``smallest`` bytes. With activation checkpointing the inputs of blocks are moved; what
    ``selective`` keeps stays. Copies run in the stream of the computation: they take the time of the bus, and the
    processor waits for none.

    Args:
        smallest: bytes of a block of memory that is moved.
        pinned: whether main memory is page-locked, without which a GPU's copies make the processor wait.
    """

    def __init__(self, smallest: int = SMALLEST, pinned: bool = True) -> None:
        self.smallest, self.pinned = smallest, pinned

    @contextmanager
    def forward(self, network: nn.Module) -> Iterator[None]:
        """For the forward pass of a network."""
        held = _Pass(self, network)
        with saved_tensors_hooks(held.keep, held.give):
            yield

    def away(self, block: Tensor) -> Any:
        """A copy elsewhere of a one-dimensional tensor."""
        home = torch.empty(block.shape, dtype=block.dtype, pin_memory=self.pinned)
        return home.copy_(block, non_blocking=self.pinned)

    def back(self, kept: Any, device: torch.device) -> Tensor:
        """What ``away`` has copied, on the device."""
        found: Tensor = kept
        # a copy also where both are main memory, so that nothing changes what is kept
        return found.to(device, non_blocking=self.pinned, copy=True)


class _Pass:
    """The hooks of a forward pass."""

    def __init__(self, offload: ActivationOffload, network: nn.Module) -> None:
        self.offload = offload
        held = [*network.parameters(), *network.buffers()]
        self.weights = {one.untyped_storage()._cdata for one in held}
        # a weak reference keeps the address of a block from being another's while it is a key here
        self.blocks: dict[tuple[int, int, torch.dtype], tuple[StorageWeakRef, _Kept]] = {}

    def keep(self, tensor: Tensor) -> Any:
        if not self._moves(tensor):
            return tensor.detach()  # the tensor itself would keep its operation, and that the tensor
        storage = tensor.untyped_storage()
        alive = StorageWeakRef(storage)
        key = (alive.cdata, tensor._version, tensor.dtype)
        if key not in self.blocks:
            whole = tensor.detach().as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
            self.blocks[key] = (alive, _Kept(self.offload.away(whole), tensor.device))
        kept = self.blocks[key][1]
        kept.uses += 1
        return kept, tensor.size(), tensor.stride(), tensor.storage_offset()

    def give(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        kept, size, stride, offset = packed
        whole = self.offload.back(kept.home, kept.device) if kept.returned is None else kept.returned
        kept.uses -= 1
        kept.returned = whole if kept.uses > 0 else None
        return whole.as_strided(size, stride, offset)

    def _moves(self, tensor: Tensor) -> bool:
        if tensor.layout is not torch.strided or tensor.is_complex():
            return False
        storage = tensor.untyped_storage()
        if storage.nbytes() < self.offload.smallest or storage._cdata in self.weights:
            return False
        return not _is_of_a_weight(tensor)


def _is_of_a_weight(tensor: Tensor) -> bool:
    """Whether a chain of operations on one tensor each, such as a cast and a transposition, leads from a leaf to it."""
    node = tensor.grad_fn
    if node is None:
        return False
    while node is not None:
        if type(node).__name__ == "AccumulateGrad":
            return True
        if len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    return False
