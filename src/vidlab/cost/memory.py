"""What a training step needs of memory, found by running it on tensors without numbers."""

import weakref
from bisect import bisect_left, insort
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from typing_extensions import override

# Of torch's tensors on a CPU, and of glibc's blocks with the header before each, in bytes.
ALIGNMENT, HEADER, SMALLEST = 64, 16, 32
# Resident after the first steps of any model on a CPU and of no tensor: pages of kernels' code as they are first used,
# code that oneDNN makes, its scratch space, threads. Measured, torch 2.13, x86-64.
PROCESS_BYTES = 60 * 10**6


class GlibcHeap:
    """Addresses as glibc gives them to tensors, so that gaps between blocks are counted: a process grows by them.

    A block takes the smallest gap that surely holds it aligned, which one of its own size, just freed, does not do:
    ``posix_memalign`` looks for room with the alignment added and gives the ends back. Gaps that touch are one. What is
    freed stays in the process, as ``prepare_host`` sets it.

    Attributes:
        top: bytes from the first address to the last ever used.
    """

    def __init__(self) -> None:
        self.top = 0
        self._blocks: dict[int, int] = {}
        self._gaps: list[tuple[int, int]] = []  # (size, start), sorted
        self._size_at: dict[int, int] = {}  # of gaps, by start
        self._start_before: dict[int, int] = {}  # of gaps, by end

    def allocate(self, size: int) -> int:
        """The address of a new block of so many bytes."""
        size = max(-(-(size + HEADER) // HEADER) * HEADER, SMALLEST)
        wanted = size + ALIGNMENT + SMALLEST
        place = bisect_left(self._gaps, (wanted, 0))
        if place < len(self._gaps):
            room, start = self._gaps[place]
            self._remove(start)
        else:
            start = self._start_before.get(self.top, self.top)
            if start < self.top:
                self._remove(start)
            room, self.top = wanted, start + wanted
        block = -(-(start + HEADER) // ALIGNMENT) * ALIGNMENT - HEADER
        block += ALIGNMENT if 0 < block - start < SMALLEST else 0
        for gap, left in ((start, block - start), (block + size, start + room - block - size)):
            if left:
                self._add(gap, left)
        self._blocks[block] = size
        return block

    def free(self, start: int) -> None:
        """Give a block back."""
        size = self._blocks.pop(start)
        if start in self._start_before:
            before = self._start_before[start]
            size += start - before
            self._remove(before)
            start = before
        if (after := self._size_at.get(start + size)) is not None:
            self._remove(start + size)
            size += after
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        insort(self._gaps, (size, start))
        self._size_at[start], self._start_before[start + size] = size, start

    def _remove(self, start: int) -> None:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        del self._gaps[bisect_left(self._gaps, (size, start))]


class MemoryTracker(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its last use, through forward, backward and optimizer.

    Used inside a ``FakeTensorMode``, whose tensors have sizes and devices and no numbers: what autocast casts, what is
    kept for the backward pass and what is recomputed is seen as it happens, whatever the size. Scratch space inside a
    kernel is not seen. Where Python asks for a number, such as whether all values are finite, the answer is one (True).

    Attributes:
        live: bytes of the storages that are there now.
        peak: the most there were.
        heap: where they lie in a process on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.heap = GlibcHeap()
        self._known: dict[int, tuple[int, int]] = {}

    def restart(self) -> None:
        """Forget the peak of what came before."""
        self.peak = self.live

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0])
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known[key] = size, self.heap.allocate(size)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)
        return tensor

    def _gone(self, key: int) -> None:
        size, place = self._known.pop(key)
        self.live -= size
        self.heap.free(place)


def _one(scalar: Tensor) -> bool | int | float:
    return True if scalar.dtype == torch.bool else 1.0 if scalar.is_floating_point() else 1
