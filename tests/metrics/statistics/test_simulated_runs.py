"""Statistics on simulated runs whose truth is known: they do what they promise at the rate that they state."""

from functools import cache

import numpy as np
import pytest

from vidlab.metrics.statistics.bootstrap import stratified_bootstrap
from vidlab.metrics.statistics.improvement import probability_of_improvement
from vidlab.metrics.statistics.over_seeds import mean_over_seeds, trimmed_mean
from vidlab.metrics.statistics.power import smallest_effect
from vidlab.metrics.statistics.profiles import performance_profile
from vidlab.metrics.statistics.seeds_and_clips import seeds_and_clips
from vidlab.metrics.statistics.significance import holm, paired_test, unpaired_test

SETS = 500


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def seeds(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def holds(intervals, truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


def near(rate: float, stated: float, sets: int = SETS) -> bool:
    """Within 4 standard deviations of a share of as many sets."""
    return abs(rate - stated) < 4 * np.sqrt(stated * (1 - stated) / sets)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_over_few_seeds_hold_the_truth_as_often_as_they_say(n):
    runs = draws(n).normal(0.3, 2.0, size=(SETS, n)).tolist()
    for level in (0.95, 0.8):
        assert near(holds((mean_over_seeds(row, level).interval for row in runs), 0.3), level)


def test_the_stratified_bootstrap_holds_the_truth():
    # 10 tasks of 5 runs; of a symmetric distribution the interquartile mean of all is the mean of the tasks
    runs = draws(1).normal(0, 1, size=(300, 10, 5)).tolist()
    found = [stratified_bootstrap(tasks, trimmed_mean, resamples=400).interval for tasks in runs]
    assert 0.91 < holds(found, 0.0) < 0.98


def test_seeds_and_clips_hold_their_own_truth():
    random = draws(2)
    clip, run = random.normal(0, 1, size=(200, 1, 30)), random.normal(0, 0.5, size=(200, 4, 1))
    names = [f"clip {n}" for n in range(30)]
    scores = clip + run + random.normal(0, 0.2, size=(200, 4, 30))
    found = [
        seeds_and_clips({s: dict(zip(names, row.tolist(), strict=True)) for s, row in enumerate(one)}) for one in scores
    ]
    of_clips, of_seeds = clip.mean(axis=(1, 2)), run.mean(axis=(1, 2))  # what is fixed in each question
    pairs = zip(found, of_clips, of_seeds, strict=True)
    held = [
        (a.over_seeds.low <= c <= a.over_seeds.high, a.over_clips.low <= s <= a.over_clips.high) for a, c, s in pairs
    ]
    over_seeds, over_clips = np.mean(held, axis=0)
    assert near(over_seeds, 0.95, 200) and 0.89 < over_clips < 0.98


@cache  # of 6 runs there are only 20 orders
def improvement(x: tuple[int, ...], y: tuple[int, ...]):
    return probability_of_improvement(x, y).interval


def test_the_probability_of_improvement_holds_the_truth():
    for n, shift, truth in ((3, 0.0, 0.5), (4, 1.0, 0.7602)):  # the normal distribution at shift / sqrt(2)
        runs = draws(n).normal(0, 1, size=(SETS, 2 * n)) + np.repeat([shift, 0.0], n)
        ranks = runs.argsort(axis=1).argsort(axis=1)
        found = [improvement(*(tuple(sorted(part.tolist())) for part in (row[:n], row[n:]))) for row in ranks]
        assert holds(found, truth) > 0.93


def test_the_band_of_a_profile_holds_the_truth():
    runs = draws(3).uniform(0, 1, size=(SETS, 12)).tolist()
    found = [performance_profile(row, [0.3, 0.9]) for row in runs]
    for place, truth in enumerate((0.7, 0.1)):
        assert np.mean([one.low[place] <= truth <= one.high[place] for one in found]) > 0.93


@pytest.mark.parametrize("test", [paired_test, unpaired_test])
def test_p_is_uniform_where_nothing_differs(test):
    runs = draws(4).normal(0, 1, size=(SETS, 2, 3))
    values = np.array([test(seeds(a), seeds(b)).p_value for a, b in runs])
    for level in (0.05, 0.1, 0.5, 0.9):
        rate = float((values < level).mean())
        assert near(rate, level) or (test is unpaired_test and rate < level)  # Welch's is on the safe side at 3 seeds


def test_the_exact_test_holds_its_level_for_what_is_not_normal():
    runs = draws(5).exponential(1, size=(SETS, 2, 6)) ** 2
    values = np.array([paired_test(seeds(a), seeds(b)).p_exact for a, b in runs])
    for level in (2 / 64, 0.25, 0.5):  # p values of 6 seeds are multiples of 1/32
        assert near(float((values <= level).mean()), level)


def test_holm_holds_the_error_of_the_family():
    runs = draws(6).normal(0, 1, size=(250, 6, 2, 4))
    runs[:, :2, 0] += 4.0  # two of six differ, and are no error
    alone, family = 0, 0
    for one in runs:
        values = [paired_test(seeds(a), seeds(b)).p_value for a, b in one]
        alone += min(values[2:]) < 0.05
        family += min(holm(values)[2:]) < 0.05
    assert family / 250 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250) and alone / 250 > 0.11


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_smallest_effect_is_found_in_four_of_five_comparisons(n):
    effect = smallest_effect(1.5 / np.sqrt(n), n - 1)
    runs = draws(7 + n).normal(effect, 1.5, size=(SETS, n))
    found = np.mean([paired_test(seeds(row), seeds(0 * row)).p_value < 0.05 for row in runs])
    assert near(float(found), 0.8)
