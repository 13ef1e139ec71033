"""What a training step needs of memory, found by running it on tensors without numbers."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from vidlab.layers.compilation.recomputing import SELECTIVE

# A process on a CPU grows by more than its tensors: freed blocks leave gaps that the next do not fill, and
# ``prepare_host`` keeps them; oneDNN reorders operands of bfloat16 products; pages of code are read as kernels are
# first used. Fitted to the peaks of training steps, torch 2.13, glibc 2.36, x86-64 with AVX-512: they hold within 15 %
# from 0.2 to 1 GB.
GROWTH = {torch.float32: 1.25, torch.bfloat16: 1.6}
GROWTH_RECOMPUTING = 2.2  # blocks that are recomputed in the backward pass leave more gaps, in either type
GROWTH_SELECTIVE = {torch.float32: 1.35, torch.bfloat16: 2.2}  # where products and attention are kept
PROCESS_BYTES = 50 * 10**6


def process_peak(tensors: int, dtype: torch.dtype, recomputes: bool | str = False) -> int:
    """Bytes by which a process on a CPU grows while its tensors take ``tensors`` bytes at most.

    Args:
        tensors: the peak of a ``MemoryTracker``.
        dtype: in which matrix products are computed.
        recomputes: with activation checkpointing, and ``selective`` where products and attention are kept.
    """
    by_dtype = GROWTH_SELECTIVE if recomputes == SELECTIVE else GROWTH
    block = recomputes and recomputes != SELECTIVE
    growth = GROWTH_RECOMPUTING if block else by_dtype.get(dtype, by_dtype[torch.float32])
    return round(tensors * growth) + PROCESS_BYTES


class MemoryTracker(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its last use, through forward, backward and optimizer.

    Used inside a ``FakeTensorMode``, whose tensors have sizes and devices and no numbers: what autocast casts, what is
    kept for the backward pass and what is recomputed is seen as it happens, whatever the size. Scratch space inside a
    kernel is not seen. Where Python asks for a number, such as whether all values are finite, the answer is one (True).

    Attributes:
        live: bytes of the storages that are there now.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

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
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, storage.nbytes())
        return tensor

    def _gone(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size


def _one(scalar: Tensor) -> bool | int | float:
    return True if scalar.dtype == torch.bool else 1.0 if scalar.is_floating_point() else 1
