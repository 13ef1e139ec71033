"""What each step of a curation left, beside what a paper states."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidlab.curation.recipe import Recipe

COLUMNS = ("rejected_by", "reason", "start", "end", "fps")


@dataclass
class Funnel:
    """Counts clips and seconds by the step that rejected them.

    Args:
        recipe: whose steps are shown.
    """

    recipe: Recipe
    clips: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, table: Any) -> None:
        """Count the clips of an Arrow table with ``COLUMNS``."""
        for row in table.select(list(COLUMNS)).to_pylist():
            step = row["rejected_by"]
            self.clips[step] += 1
            self.seconds[step] += (row["end"] - row["start"]) / row["fps"] if row["fps"] else 0.0
            if step:
                self.reasons[step, row["reason"]] += 1

    @property
    def kept(self) -> int:
        """Clips that are in."""
        return self.clips[""]

    @property
    def kept_seconds(self) -> float:
        """Their duration."""
        return self.seconds[""]

    def rows(self) -> Iterator["FunnelRow"]:
        """A row per step, in order."""
        total = sum(self.seconds.values())
        left = total
        for step in self.recipe.steps:
            ran = bool(step.stages)
            left -= self.seconds.get(step.name, 0.0)
            share = 100 * left / total if total else 0.0
            published = step.published
            yield FunnelRow(
                step.name,
                ran,
                self.clips[step.name],
                left,
                max(0.0, share),
                None if published is None else published.remaining,
                "" if published is None else published.name,
            )

    def most_common_reasons(self) -> Sequence[tuple[str, str, int]]:
        """(step, reason, clips), in the order of the steps, the most frequent first."""
        order = {step.name: place for place, step in enumerate(self.recipe.steps)}
        found = [(step, reason, count) for (step, reason), count in self.reasons.items()]
        return sorted(found, key=lambda one: (order.get(one[0], len(order)), -one[2], one[1]))


@dataclass(frozen=True)
class FunnelRow:
    """One step.

    Args:
        step: its name.
        ran: False where it was left out.
        rejected: clips that it rejected.
        seconds: duration that is left behind it.
        remaining: percent of the duration that is left behind it.
        published: percent that the paper states, where it does.
        published_name: what the paper calls it.
    """

    step: str
    ran: bool
    rejected: int
    seconds: float
    remaining: float
    published: float | None
    published_name: str

    @property
    def cells(self) -> tuple[str, ...]:
        """As text: step, clips rejected, hours left, percent left, published percent."""
        published = "" if self.published is None else f"{self.published:g} %"
        if not self.ran:
            return self.step, "did not run", "", "", published
        return self.step, str(self.rejected), f"{self.seconds / 3600:.3f}", f"{self.remaining:.1f} %", published


HEADER = ("step", "rejected clips", "hours left", "remaining", "published")


def funnel_text(funnel: Funnel) -> str:
    """The table of a funnel as text."""
    rows = [HEADER, *(row.cells for row in funnel.rows())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join("  " + "  ".join(_padded(row, widths)) for row in rows)


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.rjust(width) if place else cell.ljust(width)
