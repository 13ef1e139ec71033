"""Runs as configurations, with means over seeds, intervals, tests and costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidlab.errors import UserError
from vidlab.lab.compare.measures import Measure, main_measures, measures_of
from vidlab.lab.compare.reading.runs import COSTS, ComparedRun
from vidlab.lab.compare.reading.selection import Selection, sweep_command
from vidlab.lab.runs.configurations import Configuration, group_by_settings
from vidlab.metrics.intervals import Interval
from vidlab.metrics.statistics.over_seeds import Estimate, mean_over_seeds
from vidlab.metrics.statistics.seeds_and_clips import seeds_and_clips
from vidlab.metrics.statistics.verdicts import PairVerdict, SeedScores, compare_configurations


@dataclass(frozen=True)
class ConfigurationRow:
    """A configuration: runs whose settings differ in nothing but the seed.

    Args:
        name: its settings.
        settings: those in which configurations differ.
        runs: by seed; finished ones.
        means: over seeds, by the metric's key.
        over_clips: what other clips would change, by the metric's key, where clips were scored one by one.
        clip_means: the score of each clip, mean over seeds, by the metric's key.
        costs: mean over seeds, by kind, where they are known.
        parameters: of the denoiser.
    """

    name: str
    settings: Mapping[str, str]
    runs: Mapping[int, ComparedRun]
    means: Mapping[str, Estimate]
    over_clips: Mapping[str, Interval]
    clip_means: Mapping[str, tuple[float, ...]]
    costs: Mapping[str, float]
    parameters: float | None

    def values(self, key: str) -> dict[int, float]:
        """The last value of a metric by seed, of those that have it."""
        return {seed: run.curves[key].last for seed, run in self.runs.items() if key in run.curves}

    def is_finite(self, key: str) -> bool:
        """Whether a metric was measured and has a finite mean."""
        return key in self.means and math.isfinite(self.means[key].value)


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown.

    Args:
        selection: the runs.
        rows: the configurations; the first is what others are tested against.
        main: the metrics that decide.
        others: those that are shown and not tested.
        verdicts: by the metric's key and the configuration's name, corrected together.
        left_out: runs that did not finish.
        command: what was typed for the sweep, where that is known.
    """

    selection: Selection
    rows: tuple[ConfigurationRow, ...]
    main: tuple[Measure, ...]
    others: tuple[Measure, ...]
    verdicts: Mapping[tuple[str, str], PairVerdict]
    left_out: tuple[ComparedRun, ...]
    command: str = ""


def compare(selection: Selection, metrics: Sequence[str] = ()) -> Comparison:
    """Group the finished runs, summarize and test them.

    Args:
        selection: the runs.
        metrics: by which the comparison is decided; chosen by ``main_measures`` where none is named.

    Raises:
        UserError: no run has finished, or none was measured by what was asked for.
    """
    finished = [run for run in selection.runs if run.state == "finished" and run.curves]
    left_out = tuple(run for run in selection.runs if run not in finished)
    if not finished:
        raise UserError(f"{selection.title}: none of its {len(selection.runs)} runs has finished: {_states(left_out)}.")
    groups = _groups(finished)
    measures = measures_of(runs.values() for _, runs in groups)
    main = main_measures(measures, metrics)
    rows = tuple(_row(_name(one, runs), one.settings, runs, measures) for one, runs in groups)
    others = tuple(one for one in measures if one not in main)
    return Comparison(selection, rows, main, others, _verdicts(rows, main), left_out, sweep_command(selection))


def _states(runs: Sequence[ComparedRun]) -> str:
    found = [f"{run.name} {run.state}{f' ({run.message})' if run.message else ''}" for run in runs]
    return "; ".join(found[:5]) + (f"; {len(found) - 5} more" if len(found) > 5 else "")


def _groups(runs: Sequence[ComparedRun]) -> list[tuple[Configuration, dict[int, ComparedRun]]]:
    """The configurations with their runs by seed."""
    defaults = [run.defaults for run in runs] if all(run.defaults for run in runs) else ()
    return [
        (one, {seed: runs[place] for seed, place in zip(one.seeds, one.runs, strict=True)})
        for one in group_by_settings([run.overrides for run in runs], defaults=defaults)
    ]


def _name(one: Configuration, runs: Mapping[int, ComparedRun]) -> str:
    """Its settings; a run that stands alone and differs in none goes by its own name."""
    return one.name if one.settings or len(runs) > 1 else next(iter(runs.values())).name


def _row(
    name: str, settings: Mapping[str, str], runs: Mapping[int, ComparedRun], measures: Sequence[Measure]
) -> ConfigurationRow:
    means, over_clips, clip_means = {}, {}, {}
    for key in (one.key for one in measures):
        values = [run.curves[key].last for run in runs.values() if key in run.curves]
        if not values:
            continue
        means[key] = mean_over_seeds(values)
        scores = {seed: run.clip_scores[key] for seed, run in runs.items() if key in run.clip_scores}
        if scores and set.intersection(*(set(one) for one in scores.values())):
            clips = sorted(set.intersection(*(set(one) for one in scores.values())))
            clip_means[key] = tuple(float(np.mean([one[clip] for one in scores.values()])) for clip in clips)
            interval = seeds_and_clips(scores).over_clips
        else:
            interval = _logged_interval(key, runs)
        if interval is not None:
            over_clips[key] = interval
    costs = {kind: [getattr(run.work, kind) for run in runs.values()] for kind in COSTS}
    known = {kind: float(np.mean(values)) for kind, values in costs.items() if None not in values}
    parameters = next((run.parameters for run in runs.values() if run.parameters is not None), None)
    return ConfigurationRow(name, settings, runs, means, over_clips, clip_means, known, parameters)


def _logged_interval(key: str, runs: Mapping[int, ComparedRun]) -> Interval | None:
    """Of a single run, the interval that its evaluation has logged."""
    if len(runs) != 1 or not key.startswith("eval/"):
        return None
    (run,) = runs.values()
    rest = key.removeprefix("eval/")
    low, high = run.curves.get(f"eval-low/{rest}"), run.curves.get(f"eval-high/{rest}")
    return Interval(low.last, high.last, 0.95, "as logged by the evaluation") if low and high else None


def _verdicts(rows: Sequence[ConfigurationRow], main: Sequence[Measure]) -> dict[tuple[str, str], PairVerdict]:
    """Every configuration against the first in every main metric, corrected together (Holm 1979)."""
    scores = [
        SeedScores(
            one.key, one.higher_is_better, {row.name: row.values(one.key) for row in rows if one.key in row.means}
        )
        for one in main
    ]
    return {(one.metric, one.first): one for one in compare_configurations(scores, baseline=rows[0].name)}
