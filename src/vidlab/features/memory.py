"""Keys, values and scan states that a network keeps of tokens which it need not read again."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What a network made of tokens that later ones read and do not change: keys and values, states of a scan.

    Args:
        tensors: batch first.
        parts: memories of its parts, such as blocks, in their order.
    """

    tensors: tuple[Tensor, ...] = ()
    parts: tuple["Memory", ...] = ()
