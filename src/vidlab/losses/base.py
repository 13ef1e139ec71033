"""Losses added to an objective: their protocol, and all those of a training by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Regularizers:
    """The named terms of a training.

    Args:
        terms: by name.
    """

    terms: Mapping[str, Regularizer]

    @property
    def requested(self) -> frozenset[str]:
        """Names of all features that they read."""
        return frozenset[str]().union(*(term.requested for term in self.terms.values()))

    def modules(self) -> nn.ModuleDict:
        """Those with parameters or buffers."""
        return nn.ModuleDict({name: term for name, term in self.terms.items() if isinstance(term, nn.Module)})

    def values(self, context: LossContext) -> dict[str, Float[Tensor, ""]]:
        """Each term of a batch, not yet weighted."""
        return {name: term(context) for name, term in self.terms.items()}

    def added_to(self, total: Float[Tensor, ""], values: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The objective's loss plus all weighted terms."""
        return sum((self.terms[name].weight * value for name, value in values.items()), start=total)
