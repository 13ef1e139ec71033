"""A published number, and how vidlab comes to it."""

from collections.abc import Callable
from dataclasses import dataclass

EPSILON = 1e-9  # of a rounding that falls on the boundary


@dataclass(frozen=True)
class Claim:
    """A number of a paper that can be computed without its data.

    Args:
        where: table, section or equation.
        says: what the number is.
        published: the number as it is printed, without its unit.
        ours: computes the number in the same unit.
        unit: "%", "M" and the like.
        within: largest difference of a number that was rounded to the printed one; None is half a unit of its last
            printed decimal.
        remark: what the number depends on.
        contradicts: what the paper, or another one, says otherwise.
        slow: computing it takes more than about a second.
        derived: it is not printed but follows from what is, such as an equation evaluated or a listing counted.
    """

    where: str
    says: str
    published: str
    ours: Callable[[], float]
    unit: str = ""
    within: float | None = None
    remark: str = ""
    contradicts: str = ""
    slow: bool = False
    derived: bool = False

    @property
    def value(self) -> float:
        """The published number."""
        return float(self.published.replace(",", ""))

    @property
    def decimals(self) -> int:
        """Digits after the point, as printed."""
        return len(self.published.partition(".")[2])

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        return 0.5 * 10.0**-self.decimals if self.within is None else self.within

    def agrees(self, found: float) -> bool:
        """Whether what was found could have been printed as the published number."""
        return abs(found - self.value) <= self.tolerance * (1 + EPSILON) + EPSILON


@dataclass(frozen=True)
class Paper:
    """The claims of one paper.

    Args:
        title: of the paper.
        source: where it is published.
        claims: its numbers, in the paper's order.
    """

    title: str
    source: str
    claims: tuple[Claim, ...]
