"""Runs that differ only in their seed are one configuration, named by the settings in which configurations differ."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = "seed"
# Settings that name, place or watch a run without changing what it learns.
BOOKKEEPING = ("name", "ckpt_path", "resume_sweep", "plan", "logger", "hydra")


@dataclass(frozen=True)
class Configuration:
    """Runs of the same settings, seeds aside.

    Args:
        name: its settings as they are typed, such as ``model=full3d steps=32``; ``all runs`` where none differs.
        settings: the settings in which the configurations differ, by key.
        runs: the places of its runs in the list that was grouped.
        seeds: the seed of each of these runs.
    """

    name: str
    settings: Mapping[str, str]
    runs: tuple[int, ...]
    seeds: tuple[int, ...]


def group_by_settings(
    overrides: Sequence[Sequence[str]], left_out: Collection[str] = BOOKKEEPING, default: str = "default"
) -> tuple[Configuration, ...]:
    """Group runs by what was typed for them, in the order in which configurations first come.

    Args:
        overrides: for each run its command line, as Hydra keeps it: ``model=full3d``, ``+a.b=1``, ``~losses.x``. Of a key
            that comes twice the last counts.
        left_out: keys that make no difference, with everything below them. The seed never does.
        default: stands for the value of a setting that a run does not name and another does.
    """
    ...


def seed_of(overrides: Sequence[str], default: int = 0) -> int:
    """The seed that a command line names, or the default one."""
    ...


def read_overrides(folder: Path) -> tuple[str, ...]:
    """What made a run: its command line, with the choices of groups and the seed that it left to the defaults.

    Args:
        folder: of the run, in which Hydra keeps ``.hydra``; without that there are none.
    """
    ...
