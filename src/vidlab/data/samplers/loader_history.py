"""The batch sizes and numbers of processes that a run has had: what an exact resume in mid-epoch needs to know."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from vidlab.data.samplers.plan import Plan, PlanState
from vidlab.errors import UserError

log = logging.getLogger(__name__)

# What decides the order besides batch size and world size, and the key that sets it.
ORDER_KEYS = {"index_hash": "data", "seed": "seed", "bucketing": "data.bucketing", "views": "data.views"}


@dataclass(frozen=True)
class LoaderSettings:
    """One segment of a run: consecutive batches made with the same settings.

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
    """All segments of a run, which fix the order of its clips across resumes.

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

    def start(self, plan_of: Callable[[LoaderSettings, PlanState], Plan]) -> PlanState:
        """Where the plan of the current segment begins: what remains of an epoch after those before it.

        ``plan_of`` makes the plan of a segment, given where it begins.
        """
        start = PlanState(self.segments[0].first, self.epoch)
        for segment, following in pairwise(self.segments):
            start = plan_of(segment, start).remaining_after(following.first)
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


def resumed_history(state: Mapping[str, Any], order: Mapping[str, Any], accept_changes: bool) -> LoaderHistory:
    """The history in the DataModule's ``state`` in a checkpoint, for a run whose order of clips is as ``order`` says.

    Raises:
        UserError: it is another order; with ``accept_changes`` a new epoch begins in it.
    """
    history, changes = LoaderHistory.of(state["history"]), order_changes(state, order)
    if not changes:
        return history
    if not accept_changes:
        raise UserError(
            f"ckpt_path: clips would come in another order than in the checkpoint: {'; '.join(changes)}. Set it "
            "back to resume, or begin a new epoch in the new order with accept_changes=true"
        )
    rank_zero_only(log.warning)("another order of clips (%s): a new epoch begins", "; ".join(changes))
    first = replace(history.current, first=int(state["batches_consumed"]))
    return LoaderHistory(int(state["epoch"]) + 1, (first,))
