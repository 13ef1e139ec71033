"""What the steps of a run are going to cost, by the plan of its data: how long a run of a budget is."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Size = tuple[int, int, int]


@runtime_checkable
class PlannedCost(Protocol):
    """The cost of the optimizer steps to come, from where a run begins or goes on."""

    def after(self, steps: int) -> int:
        """Of the first ``steps`` of them together."""
        ...

    def steps_for(self, cost: int) -> int:
        """The fewest of them that together cost so much."""
        ...


@dataclass(frozen=True)
class EqualSteps:
    """Every step costs the same.

    Args:
        each: its cost, at least 1.
    """

    each: int

    def after(self, steps: int) -> int:
        """As ``PlannedCost``."""
        return steps * self.each

    def steps_for(self, cost: int) -> int:
        """As ``PlannedCost``."""
        return max(0, -(-cost // self.each))


@dataclass
class VaryingSteps:
    """Steps of different costs, looked up in the order in which they come, and remembered.

    Args:
        of: the cost of an optimizer step, by its number from 0.
    """

    of: Callable[[int], int]
    _sums: list[int] = field(default_factory=lambda: [0])

    def after(self, steps: int) -> int:
        """As ``PlannedCost``."""
        while len(self._sums) <= steps:
            self._one_more()
        return self._sums[steps]

    def steps_for(self, cost: int) -> int:
        """As ``PlannedCost``."""
        while self._sums[-1] < cost:
            self._one_more()
        return bisect_left(self._sums, cost)

    def _one_more(self) -> None:
        self._sums.append(self._sums[-1] + self.of(len(self._sums) - 1))
