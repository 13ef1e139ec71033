"""A search with Optuna in place of all combinations: each job's values are asked for, and its result is told.

The study is not stored: it is made again from the sweep's record, and the sampler is seeded anew for every job by the
number of jobs before it. So a job is a function of the seed and of what came before, and a search that was interrupted
goes on to the jobs of an undisturbed one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from vidlab.errors import MissingPackageError, UserError
from vidlab.lab.sweeps.grid import launch, own, planned_job, words_of
from vidlab.lab.sweeps.membership import last_value
from vidlab.lab.sweeps.record import JobRecord, read_sweep
from vidlab.lab.sweeps.running import Sweep, sweeping


@dataclass(frozen=True)
class SearchSettings:
    """How a search goes on.

    Args:
        trials: jobs in all.
        at_once: jobs that are asked for, and given to the launcher, together.
        metric: what a job is judged by, of its last metrics.
        maximize: whether more of it is better.
        seed: of the sampler.
    """

    trials: int
    at_once: int
    metric: str
    maximize: bool
    seed: int

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: no trials, or none at once.
        """
        for name in ("trials", "at_once"):
            if getattr(self, name) < 1:
                raise UserError(f"hydra.sweeper.{name}={getattr(self, name)}: it must be at least 1.")


def sweep_search(sweeper: Any, arguments: Sequence[str], typed: Sequence[str], settings: SearchSettings) -> list[Any]:
    """Search within the ranges and choices of a command line.

    Args:
        sweeper: a ``BasicSweeper`` set up by Hydra.
        arguments: the overrides of the sweep. Values with commas and ``choice(...)`` are unordered, ``range(...)`` are
            steps, ``interval(low, high)`` is continuous; ``tag(log, interval(...))`` is uniform in the logarithm, and
            ``int(interval(...))`` takes whole numbers.
        typed: the command line, without the program.
        settings: of the search.

    Returns:
        Hydra's returns, a list for each batch of jobs.

    Raises:
        UserError: nothing varies, or a setting that cannot be.
        MissingPackageError: Optuna is not installed.
        JobFailedError: a job failed; all others have run.
    """
    settings.check()
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    overrides = parser.parse_overrides([*sweeper._parse_config(), *own(arguments)])
    space = {one.get_key_element(): distribution(one) for one in overrides if one.is_sweep_override()}
    plain = [one for one in overrides if not one.is_sweep_override()]
    fixed = [f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in plain]
    if not space:
        raise UserError("hydra/sweeper=optuna: nothing varies. Give a range: optimizer.lr=interval(1e-4,1e-2)")
    returns = []
    with sweeping(sweeper.config, [], words_of(typed)) as sweep:
        waiting = sweep.to_run()
        for start in range(0, len(waiting), settings.at_once):
            returns.append(launch(sweeper, sweep, waiting[start : start + settings.at_once]))
        while (missing := settings.trials - len(read_sweep(sweep.folder).jobs)) > 0:
            asked = ask(sweep, space, settings, min(missing, settings.at_once))
            first = settings.trials - missing
            jobs = [planned_job(sweeper, first + place, [*fixed, *words]) for place, words in enumerate(asked)]
            returns.append(launch(sweeper, sweep, sweep.add(jobs)))
        print(best(sweep, settings), flush=True)
    return returns


def distribution(override: Override) -> Any:
    """Optuna's distribution of a value that varies."""
    made = _optuna().distributions
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in (value.tags or ())
        if isinstance(low, int) and isinstance(high, int):
            return made.IntDistribution(low, high, log=log)
        return made.FloatDistribution(low, high, log=log)
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        kind = made.IntDistribution if isinstance(steps[0], int) else made.FloatDistribution
        return kind(min(steps), max(steps), step=abs(value.step))
    return made.CategoricalDistribution(list(override.sweep_string_iterator()))


def ask(sweep: Sweep, space: Mapping[str, Any], settings: SearchSettings, count: int) -> list[list[str]]:
    """The values of the next jobs, as words of a command line."""
    optuna = _optuna()
    jobs = read_sweep(sweep.folder).jobs
    study = optuna.create_study(direction="maximize" if settings.maximize else "minimize")
    for job in jobs:
        study.add_trial(_trial(sweep, job, space, settings))
    asked = []
    for place in range(count):
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed + len(jobs) + place)
        trial = study.ask(dict(space))
        asked.append([f"{key}={value}" for key, value in trial.params.items()])
    return asked


def _trial(sweep: Sweep, job: JobRecord, space: Mapping[str, Any], settings: SearchSettings) -> Any:
    optuna = _optuna()
    words = dict(word.partition("=")[::2] for word in job.overrides)
    params = {key: _as_value(words[key], one) for key, one in space.items()}
    value = last_value(sweep.folder / job.folder, settings.metric) if job.state == "finished" else None
    state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, params=params, distributions=dict(space), value=value)


def _as_value(text: str, distribution: Any) -> Any:
    kinds = {"IntDistribution": int, "FloatDistribution": float}
    return kinds.get(type(distribution).__name__, str)(text)


def best(sweep: Sweep, settings: SearchSettings) -> str:
    """The best job so far, in a line."""
    found = []
    for job in read_sweep(sweep.folder).jobs:
        value = last_value(sweep.folder / job.folder, settings.metric) if job.state == "finished" else None
        if value is not None:
            found.append((value, job))
    if not found:
        return f"No job has ended with a {settings.metric}."
    value, job = (max if settings.maximize else min)(found, key=lambda one: one[0])
    return f"The best of {len(found)}: job {job.number}, {settings.metric} {value:.4g}: {' '.join(job.overrides)}"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingPackageError('hydra/sweeper=optuna needs Optuna: pip install "optuna>=4,<6"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
