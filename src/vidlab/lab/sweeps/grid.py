"""Every combination of the values of a command line, as jobs of a sweep that can be gone on with."""

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.lab.sweeps.record import JobRecord
from vidlab.lab.sweeps.resume import KEY, SWEEP_FLAGS
from vidlab.lab.sweeps.running import PlannedJob, Sweep, sweeping


def sweep_grid(sweeper: Any, arguments: Sequence[str], typed: Sequence[str]) -> list[Any]:
    """Run every combination.

    Args:
        sweeper: a ``BasicSweeper`` set up by Hydra: it has the configuration, the loader and the launcher. (Hydra makes
            its classes anew when it looks for plugins, so that an import of that class may be of another.)
        arguments: the overrides of the sweep.
        typed: the command line, without the program.

    Returns:
        Hydra's returns, a list for each batch of jobs.

    Raises:
        JobFailedError: a job failed; all others have run.
    """
    overrides = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(
        [*sweeper._parse_config(), *own(arguments)]
    )
    (combinations,) = sweeper.split_arguments(overrides, None)
    jobs = [planned_job(sweeper, number, words) for number, words in enumerate(combinations)]
    returns = []
    with sweeping(sweeper.config, jobs, words_of(typed)) as sweep:
        waiting = sweep.to_run()
        size = sweeper.max_batch_size or len(waiting)
        for start in range(0, len(waiting), size or 1):
            returns.append(launch(sweeper, sweep, waiting[start : start + size]))
    return returns


def own(arguments: Sequence[str]) -> list[str]:
    """The overrides that are the jobs' own."""
    return [word for word in arguments if not word.startswith(f"{KEY}=")]


def words_of(typed: Sequence[str]) -> list[str]:
    """A command line as it is recorded."""
    return [word for word in typed if word not in SWEEP_FLAGS and not word.startswith(f"{KEY}=")]


def planned_job(sweeper: Any, number: int, words: Sequence[str]) -> PlannedJob:
    """Compose a job, to find what does not compose before anything runs, and where it will write."""
    config = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(words))
    return PlannedJob(tuple(words), _folder(config, number))


def _folder(config: DictConfig, number: int) -> str:
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
    return os.path.normpath(str(OmegaConf.select(config, "hydra.sweep.subdir")))


def launch(sweeper: Any, sweep: Sweep, batch: Sequence[JobRecord]) -> Sequence[Any]:
    """Launch jobs together; returns what Hydra gives back of each."""
    words = [sweep.words_for(job) for job in batch]
    return sweeper.launcher.launch(words, initial_job_idx=batch[0].number)
