"""Losses added to an objective: their protocol, and all those of a training by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from vidlab.clip import LossContext
from vidlab.errors import UserError


@runtime_checkable
class Regularizer(Protocol):
    """A named term of the loss.

    It may be an ``nn.Module`` with parameters and buffers: they are optimized, checkpointed and resumed, and left out
    of EMA and export.
    """

    weight: float
    requested: frozenset[str]

    def __call__(self, context: LossContext) -> Float[Tensor, ""]:
        """The unweighted term."""
        ...


@runtime_checkable
class FitsFeatures(Protocol):
    """A regularizer whose parameters have the size of features."""

    requested: frozenset[str]

    def fit_features(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make them.

        Args:
            shapes: of each feature it requests, for one clip.
        """
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

    def fit_features(self, shapes_of: Callable[[frozenset[str]], Mapping[str, tuple[int, ...]]]) -> None:
        """Make what has the size of features.

        Args:
            shapes_of: the shapes of features by name, for one clip; called where they are needed.
        """
        for term in self.terms.values():
            if isinstance(term, FitsFeatures):
                term.fit_features(shapes_of(term.requested))

    def values(self, context: LossContext) -> dict[str, Float[Tensor, ""]]:
        """Each term of a batch, not yet weighted."""
        return {name: term(context) for name, term in self.terms.items()}

    def added_to(self, total: Float[Tensor, ""], values: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The objective's loss plus all weighted terms."""
        return sum((self.terms[name].weight * value for name, value in values.items()), start=total)


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight below 0.

    Raises:
        UserError: naming it.
    """
    if not weight >= 0:
        raise UserError(f"losses.{name}.weight={weight} must not be negative; losses.{name}=null leaves the term out.")
