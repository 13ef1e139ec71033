"""Which clips a process trains on: with sequence parallelism several of them share a clip."""

from dataclasses import dataclass
from typing import Any

SETTING = "trainer.sequence_parallel"


@dataclass(frozen=True)
class DataRanks:
    """A process's place among those that train on different clips.

    Args:
        rank: from 0.
        size: how many there are.
    """

    rank: int
    size: int


def sequence_parallel_of(trainer: Any) -> int:
    """Processes that share the tokens of a clip; 1 where a trainer says nothing of it."""
    return int(getattr(trainer, "sequence_parallel", 1))


def data_ranks(trainer: Any) -> DataRanks:
    """The place of a trainer's process: neighbors in ``trainer.global_rank`` share a clip."""
    shared = sequence_parallel_of(trainer)
    return DataRanks(trainer.global_rank // shared, trainer.world_size // shared)
