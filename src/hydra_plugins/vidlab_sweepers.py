"""Hydra finds its plugins in this package; what they do is in ``vidlab.lab.sweeps``.

Hydra imports this file at every start, so it imports nothing else that takes time.
"""

import sys
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from typing_extensions import override


class GridSweeper(BasicSweeper):
    """Every combination of the values of a command line; see ``vidlab.lab.sweeps.grid``."""

    @override
    def sweep(self, arguments: list[str]) -> Any:
        from vidlab.lab.sweeps.grid import sweep_grid

        return sweep_grid(self, arguments, sys.argv[1:])


@dataclass
class GridSweeperConf(BasicSweeperConf):
    """As Hydra's own; ``max_batch_size`` jobs are given to the launcher at once, by default all."""

    _target_: str = "hydra_plugins.vidlab_sweepers.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="vidlab")


class OptunaSweeper(BasicSweeper):
    """A search by Optuna's tree-structured Parzen estimator; see ``vidlab.lab.sweeps.search``."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, **settings: Any) -> None:
        super().__init__(max_batch_size, params)
        self._settings = settings

    @override
    def sweep(self, arguments: list[str]) -> Any:
        from vidlab.lab.sweeps.search import SearchSettings, sweep_search

        return sweep_search(self, arguments, sys.argv[1:], SearchSettings(**self._settings))


@dataclass
class OptunaSweeperConf(BasicSweeperConf):
    """See ``vidlab.lab.sweeps.search.SearchSettings``."""

    _target_: str = "hydra_plugins.vidlab_sweepers.OptunaSweeper"
    trials: int = 20
    at_once: int = 1
    metric: str = "val/loss"
    maximize: bool = False
    seed: int = 0


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="vidlab")
