"""Runs grouped by their settings and compared over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.runs.configurations import SEED, Configuration, group_by_settings
from vidlab.metrics.intervals import Interval
from vidlab.metrics.results import MetricResult
from vidlab.metrics.statistics.over_seeds import Estimate, mean_over_seeds
from vidlab.metrics.statistics.seeds_and_clips import difference_over_clips, seeds_and_clips
from vidlab.metrics.statistics.verdicts import PairVerdict, SeedScores, compare_pair, corrected

# What a comparison is decided by, where it was measured. Each further metric costs the others power.
MAIN = ("shapes_judge", "fvd", "x0_mse")
FALLBACK = 3


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, in the order of ``configuration.seeds``."""

    configuration: Configuration
    runs: tuple[Evaluated, ...]

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.configuration.name

    def results(self, metric: str) -> dict[int, MetricResult]:
        """One metric of its runs, by seed, of those that have it."""
        pairs = zip(self.configuration.seeds, self.runs, strict=True)
        return {seed: run.scores.results[metric] for seed, run in pairs if metric in run.scores.results}


@dataclass(frozen=True)
class Row:
    """One metric of one configuration.

    Args:
        metric: its name.
        group: the configuration.
        mean: over its seeds, with Student's interval.
        over_clips: what other clips would change, with these runs; None for metrics of whole sets.
        verdict: against the baseline; None for the baseline itself.
        difference_over_clips: what other clips would change in the difference to the baseline, with these runs.
    """

    metric: str
    group: Group
    mean: Estimate
    over_clips: Interval | None
    verdict: PairVerdict | None = None
    difference_over_clips: Interval | None = None

    @property
    def depends_on_clips(self) -> bool:
        """Whether a difference was shown over seeds that other clips could turn around."""
        interval = self.difference_over_clips
        shown = self.verdict is not None and self.verdict.outcome in ("better", "worse", "differs")
        return shown and interval is not None and interval.low <= 0 <= interval.high


@dataclass(frozen=True)
class SeedComparison:
    """Everything that is said of some runs.

    Args:
        groups: the configurations; the first is the baseline.
        main: the metrics that decide, corrected among themselves.
        rows: of the main metrics.
        others: of every other metric, corrected among all of these.
    """

    groups: tuple[Group, ...]
    main: tuple[str, ...]
    rows: tuple[Row, ...]
    others: tuple[Row, ...]


def group_runs(subjects: Sequence[Evaluated]) -> tuple[Group, ...]:
    """The configurations of some runs; one whose settings nobody recorded is a configuration of its own."""
    known = [subject for subject in subjects if subject.settings is not None]
    settings = [subject.settings for subject in subjects if subject.settings is not None]
    found = group_by_settings([one.overrides for one in settings], defaults=[one.defaults for one in settings])
    groups = [Group(one, tuple(known[place] for place in one.runs)) for one in found]
    alone = [
        Group(Configuration(subject.name, {}, (0,), (0,)), (subject,))
        for subject in subjects
        if subject.settings is None
    ]
    first_place = {id(subject): place for place, subject in enumerate(subjects)}
    return tuple(sorted([*groups, *alone], key=lambda group: min(first_place[id(run)] for run in group.runs)))


def named_by_settings(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same with runs that are called by their settings and seed, where these are known."""
    return tuple(
        replace(
            group,
            runs=tuple(
                run if run.settings is None else replace(run, name=f"{group.name} {SEED}={seed}")
                for run, seed in zip(group.runs, group.configuration.seeds, strict=True)
            ),
        )
        for group in groups
    )


def compare_over_seeds(groups: Sequence[Group]) -> SeedComparison:
    """Every configuration against the first in every metric that both have."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.scores.results))
    main = tuple(name for name in MAIN if name in names) or _first_directed(groups[0], names)
    rows = [row for name in main for row in _rows(groups, name)]
    others = [row for name in names if name not in main for row in _rows(groups, name)]
    return SeedComparison(tuple(groups), main, _corrected(rows), _corrected(others))


def _first_directed(group: Group, names: Sequence[str]) -> tuple[str, ...]:
    known = {name: result for name in names for result in group.results(name).values()}
    return tuple(name for name, result in known.items() if result.higher_is_better is not None)[:FALLBACK]


def _rows(groups: Sequence[Group], metric: str) -> list[Row]:
    found = {group.name: group.results(metric) for group in groups}
    baseline = next((group for group in groups if found[group.name]), groups[0])
    values = {name: {seed: result.value for seed, result in one.items()} for name, one in found.items()}
    higher = next(result.higher_is_better for one in found.values() for result in one.values())
    scores = SeedScores(metric, higher, values)
    rows = []
    for group in groups:
        if results := found[group.name]:
            row = Row(metric, group, mean_over_seeds(list(values[group.name].values())), _over_clips(results))
            rows.append(row if group is baseline else _against(row, scores, baseline))
    return rows


def _against(row: Row, scores: SeedScores, baseline: Group) -> Row:
    mine, theirs = (_by_clip(group.results(row.metric)) for group in (row.group, baseline))
    verdict = _verdict(scores, row.group, baseline)
    over_clips = None if verdict.refused else difference_over_clips(mine, theirs)
    return replace(row, verdict=verdict, difference_over_clips=over_clips)


def _over_clips(results: dict[int, MetricResult]) -> Interval | None:
    scores = _by_clip(results)
    return seeds_and_clips(scores).over_clips if set.intersection(*map(set, scores.values())) else None


def _by_clip(results: dict[int, MetricResult]) -> dict[int, dict[str, float]]:
    """Scores by seed and clip; none of metrics of whole sets."""
    return {
        seed: {str(key): score for key, score in zip(result.keys, result.scores, strict=True)}
        for seed, result in results.items()
    }


def _verdict(scores: SeedScores, group: Group, baseline: Group) -> PairVerdict:
    found = compare_pair(scores, group.name, baseline.name)
    first = next(run for run in baseline.runs if scores.metric in run.scores.results)
    reasons = (_obstacle(scores.metric, run, first) for run in (*group.runs, *baseline.runs))
    refused = next((reason for reason in reasons if reason), "")
    return replace(found, refused=refused, test=None, unseen=None) if refused else found


def _obstacle(metric: str, run: Evaluated, other: Evaluated) -> str:
    """Why a metric of two runs cannot be compared; empty if it can."""
    if metric not in run.scores.results:
        return ""
    mine, theirs = run.scores.results[metric], other.scores.results[metric]
    if _data(run) != _data(other):
        return "other held-out clips; name one data set for all, data=<choice>"
    conditions, wanted = mine.conditions(), theirs.conditions()
    names = [name for name in {**conditions, **wanted} if conditions.get(name) != wanted.get(name)]
    if names:
        return ", ".join(f"{name} {conditions.get(name)} and {wanted.get(name)}" for name in names)
    return "" if mine.keys == theirs.keys else "other clips"


def _data(run: Evaluated) -> object:
    return None if run.series is None else run.series.others.get("data")


def _corrected(rows: Sequence[Row]) -> tuple[Row, ...]:
    adjusted = iter(corrected([row.verdict for row in rows if row.verdict]))
    return tuple(replace(row, verdict=next(adjusted)) if row.verdict else row for row in rows)
