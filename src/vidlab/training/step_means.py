"""Means over all batches and ranks of one optimizer step, where some elements of a batch do not count."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.parallel.shards import local

Number = Float[Tensor, ""]


@dataclass(frozen=True)
class StepMean:
    """What one optimizer step comes to.

    Args:
        values: the means, by name.
        factor: what the step's gradient, as accumulated and averaged over ranks, lacks to that of the mean loss.
    """

    values: dict[str, Number]
    factor: Number


class StepMeans:
    """Weighted means over the batches that accumulate to a step, and over ranks.

    The loss of a batch is sum(e) / sum(c) over its elements, of which masks leave different numbers c. The average of
    such means over batches and ranks is not sum(e) / sum(c) of them all, so that it would depend on how clips are dealt
    to batches. Each batch's loss is therefore taken times its share c / r, where r is the size of the step's first
    batch; trainers then average over n batches and N ranks, and what is missing to the mean over all is n N r / sum(c),
    known once the last batch has been seen. With equal c = r both factors are exactly 1.
    """

    def __init__(self) -> None:
        self._reference = 0.0
        self._batches = 0
        self._sums: dict[str, Tensor] = {}
        self._shares: Tensor | None = None

    def share(self, counted: Number, size: float) -> Number:
        """The factor on a batch's loss.

        Args:
            counted: its elements that count.
            size: all its elements, counted alike on every rank.
        """
        if self._batches == 0:
            self._reference = size
        return counted / self._reference

    def add(self, values: Mapping[str, Number], share: Number) -> None:
        """Count a batch whose means are ``values``."""
        self._batches += 1
        self._shares = share if self._shares is None else self._shares + share
        for name, value in values.items():
            part = value.detach().float() * share
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def close(self, total: Callable[[Tensor], Tensor], ranks: int) -> StepMean:
        """End the step.

        Args:
            total: sums a tensor over ranks.
            ranks: their number.

        Raises:
            RuntimeError: no batch was added.
        """
        if self._shares is None:
            raise RuntimeError("an optimizer step without a batch")
        sums = total(torch.stack([*self._sums.values(), self._shares]))
        values = dict(zip(self._sums, (sums[:-1] / sums[-1]).unbind(), strict=True))
        mean = StepMean(values, self._batches * ranks / sums[-1])
        self.__init__()  # type: ignore[misc]
        return mean


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Number) -> None:
    """Multiply all gradients; the factor stays on its device."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))
