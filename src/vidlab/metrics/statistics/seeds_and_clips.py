"""Scores of the same clips in several runs: what the seeds make uncertain and what the clips do, apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vidlab.metrics.intervals import LEVEL, Interval, bootstrap_mean
from vidlab.metrics.statistics.over_seeds import mean_over_seeds


@dataclass(frozen=True)
class SeedsAndClips:
    """The mean score of one configuration with its two uncertainties.

    Args:
        mean: over seeds and clips.
        over_seeds: what other seeds would give on these clips (Student's t over the runs' means); None with one seed.
        over_clips: what other clips would give with these runs (bootstrap over the clips' means); None with one clip.
        seeds: how many runs.
        clips: how many clips all runs share.
        left_out: clips that some run lacks.
    """

    mean: float
    over_seeds: Interval | None
    over_clips: Interval | None
    seeds: int
    clips: int
    left_out: int = 0


def seeds_and_clips(scores: Mapping[int, Mapping[str, float]], level: float = LEVEL, seed: int = 0) -> SeedsAndClips:
    """Two intervals of scores at two levels, run and clip.

    The two are never mixed: whether one method beats another is a question to the seeds (would it again?), and whether
    the clips are enough is another. Scores of many clips of one run say nothing about the first: they share its seed.

    Args:
        scores: by seed and by the clip's key, at least one seed with one clip.
        level: nominal coverage.
        seed: of the bootstrap's draws.

    Raises:
        ValueError: no clip is common to all seeds.
    """
    runs = list(scores.values())
    keys = sorted(set(runs[0]).intersection(*runs[1:])) if runs else []
    if not keys:
        raise ValueError("no clip is common to all seeds")
    table = np.array([[run[key] for key in keys] for run in runs], dtype=np.float64)  # (seeds, clips)
    over_seeds = mean_over_seeds(table.mean(axis=1).tolist(), level)
    over_clips = bootstrap_mean(table.mean(axis=0).tolist(), level=level, seed=seed).interval
    left_out = len(set().union(*runs)) - len(keys)
    return SeedsAndClips(over_seeds.value, over_seeds.interval, over_clips, len(runs), len(keys), left_out)


def difference_over_clips(
    first: Mapping[int, Mapping[str, float]], second: Mapping[int, Mapping[str, float]], level: float = LEVEL
) -> Interval | None:
    """What other clips would change in a difference of two configurations, with these very runs (Student's t).

    Args:
        first, second: scores by seed and by the clip's key, at least one seed each.
        level: nominal coverage.

    Returns:
        The interval of first minus second, clip by clip over the seeds' means; None for fewer than 2 common clips.
    """
    runs = [*first.values(), *second.values()]
    keys = sorted(set(runs[0]).intersection(*runs[1:]))
    if len(keys) < 2:
        return None
    means = [np.array([[run[key] for key in keys] for run in one.values()]).mean(axis=0) for one in (first, second)]
    return mean_over_seeds((means[0] - means[1]).tolist(), level, drawn="clips").interval  # one difference a clip
