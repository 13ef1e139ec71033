"""Which clips a process trains on: with sequence parallelism several of them share a clip."""

from dataclasses import dataclass
from typing import Any

from vidlab.errors import UserError

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


def share_clips(trainer: Any, processes: int) -> None:
    """Have so many neighboring processes of a trainer share each clip.

    Raises:
        UserError: the processes do not divide into such teams.
    """
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"{SETTING}={processes}: it must be a whole number of processes, 1 or more.")
    if trainer.world_size % processes:
        raise UserError(
            f"{SETTING}={processes}: {trainer.world_size} processes do not divide into teams of {processes}. Use "
            f"trainer=ddp trainer.devices={processes}, or a multiple of it."
        )
    trainer.sequence_parallel = processes


def sequence_parallel_of(trainer: Any) -> int:
    """Processes that share the tokens of a clip; 1 where a trainer says nothing of it."""
    return int(getattr(trainer, "sequence_parallel", 1))


def data_ranks(trainer: Any) -> DataRanks:
    """The place of a trainer's process: neighbors in ``trainer.global_rank`` share a clip."""
    shared = sequence_parallel_of(trainer)
    return DataRanks(trainer.global_rank // shared, trainer.world_size // shared)
