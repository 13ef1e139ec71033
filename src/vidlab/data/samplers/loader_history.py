"""Batch sizes and numbers of processes a run has had: with them its order of clips is a pure function again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from vidlab.data.samplers.clip_plan import ClipPlan, JointStart
from vidlab.data.samplers.plan import Plan, PlanState

# What decides the order besides batch size and world size, and the key that sets it.
ORDER_KEYS = {"index_hash": "data", "seed": "seed", "bucketing": "data.bucketing", "views": "data.views"}


@dataclass(frozen=True)
class LoaderSettings:
    """Batches in a row that were made with the same settings.

    Args:
        first: number of the first batch.
        world_size: processes.
        batch_size: ``data.batch_size``.
        tokens_per_batch: ``data.bucketing.tokens_per_batch``; None without.
    """

    first: int
    world_size: int
    batch_size: int
    tokens_per_batch: int | None = None

    def like(self, other: "LoaderSettings") -> bool:
        """Whether the settings are those of another segment."""
        return replace(self, first=other.first) == other

    def __str__(self) -> str:
        tokens = "" if self.tokens_per_batch is None else f", at most {self.tokens_per_batch} tokens"
        return f"{self.world_size} x {self.batch_size} (processes x data.batch_size{tokens})"


@dataclass(frozen=True)
class LoaderHistory:
    """The segments of a run.

    Args:
        epoch: the epoch that the first segment begins with, whole.
        segments: one or more, in order.
    """

    epoch: int
    segments: tuple[LoaderSettings, ...]

    @property
    def current(self) -> LoaderSettings:
        """The settings of the batches to come."""
        return self.segments[-1]

    def continued(self, segment: LoaderSettings) -> "LoaderHistory":
        """Goes on with ``segment``, which changes nothing where its settings are the current ones."""
        if segment.like(self.current):
            return self
        # a segment without a batch leaves no trace
        kept = [earlier for earlier in self.segments if earlier.first < segment.first]
        again = bool(kept) and segment.like(kept[-1])
        return LoaderHistory(self.epoch, tuple(kept) if again else (*kept, segment))

    def start(
        self, plan_of: Callable[[LoaderSettings, PlanState | JointStart], Plan | ClipPlan]
    ) -> PlanState | JointStart:
        """Where the order of the current segment begins: what the segments before it have left of an epoch.

        Args:
            plan_of: the plan of a segment, given where its order begins.
        """
        start: PlanState | JointStart = PlanState(self.segments[0].first, self.epoch)
        for segment, following in pairwise(self.segments):
            start = plan_of(segment, start).left(following.first)
        return start

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"epoch": self.epoch, "segments": [asdict(segment) for segment in self.segments]}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "LoaderHistory":
        """The history that ``state`` was made of."""
        return cls(state["epoch"], tuple(LoaderSettings(**segment) for segment in state["segments"]))


def order_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of the order differs, readably; ``tokens_per_batch`` is a batch size and decides no order."""
    changes = []
    for name, key in ORDER_KEYS.items():
        old, new = there.get(name), here[name]
        if name == "bucketing" and old and new:
            before, now = (json.loads(rule) | {"tokens_per_batch": None} for rule in (old, new))
            changes += [f"{key}.{part} was {before.get(part)} and is {value}"
                        for part, value in now.items() if before.get(part) != value]  # fmt: skip
        elif old != new:
            what = f"{name} ({key})" if name != key else key
            changes.append(f"{what} was {old} and is {new}")
    return changes
