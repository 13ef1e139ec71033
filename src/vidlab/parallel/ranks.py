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
    teams(trainer.world_size, processes)
    trainer.sequence_parallel = processes


def teams(world_size: int, processes: int) -> int:
    """How many train on different clips, where ``processes`` of them share each.

    Raises:
        UserError: they do not divide into such teams.
    """
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"{SETTING}={processes}: it must be a whole number of processes, 1 or more.")
    if world_size % processes:
        raise UserError(
            f"{SETTING}={processes}: {world_size} processes do not divide into teams of {processes}. Use "
            f"trainer=ddp trainer.devices={processes}, or a multiple of it."
        )
    return world_size // processes


def sequence_parallel_of(trainer: Any) -> int:
    """Processes that share the tokens of a clip; 1 where a trainer says nothing of it."""
    return int(getattr(trainer, "sequence_parallel", 1))


def data_ranks(trainer: Any) -> DataRanks:
    """The place of a trainer's process: neighbors in ``trainer.global_rank`` share a clip. Without one it is alone."""
    if trainer is None:
        return DataRanks(0, 1)
    shared = sequence_parallel_of(trainer)
    return DataRanks(trainer.global_rank // shared, trainer.world_size // shared)
