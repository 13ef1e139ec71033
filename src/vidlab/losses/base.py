"""The protocol of losses added to an objective."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.clip import LossContext


@runtime_checkable
class Regularizer(Protocol):
    """A named term of the loss.

    It may be an ``nn.Module`` with parameters and buffers: they are optimised, checkpointed and resumed, and left out
    of EMA and export.
    """

    weight: float
    requested: frozenset[str]

    def __call__(self, context: LossContext) -> Float[Tensor, ""]:
        """The unweighted term."""
        ...
