"""Statistics against values worked out by hand or published."""

import math

import numpy as np
import pytest

from vidlab.metrics.statistics.bootstrap import stratified_bootstrap
from vidlab.metrics.statistics.improvement import probability_of_improvement
from vidlab.metrics.statistics.over_seeds import mean_over_seeds, trimmed_mean
from vidlab.metrics.statistics.power import power_of, smallest_effect
from vidlab.metrics.statistics.profiles import performance_profile
from vidlab.metrics.statistics.seeds_and_clips import difference_over_clips, seeds_and_clips
from vidlab.metrics.statistics.significance import holm, paired_test, seed_test, unpaired_test
from vidlab.metrics.statistics.verdicts import ONE_SEED, SeedScores, compare_configurations


def ends(estimate) -> tuple[float, float]:
    return estimate.interval.low, estimate.interval.high


def test_a_mean_over_three_seeds_by_hand():
    found = mean_over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom at 0.975, as in printed tables; std is 1
    assert found.value == 2.0 and found.std == 1.0 and found.n == 3
    assert ends(found) == pytest.approx((2 - half, 2 + half), abs=1e-6)
    assert mean_over_seeds([5.0]).interval is None and mean_over_seeds([1.0, math.inf]).interval is None


def test_the_interquartile_mean_by_hand():
    assert trimmed_mean(np.array([9.0, 1.0, 2.0, 100.0, 3.0, 4.0, 0.0, -50.0])) == 2.5  # 1, 2, 3, 4 are left
    assert trimmed_mean(np.array([0.0, 10.0, 20.0, 300.0, 9.0])) == 13.0  # one of 5 at each end
    assert trimmed_mean(np.array([1.0, 2.0, 6.0])) == 3.0


def test_the_probability_of_improvement_by_hand():
    # 3 x 2 pairs: 1 > 0; 2 > 0, 2 = 2 counts a half; 3 beats both
    assert probability_of_improvement([1, 2, 3], [0, 2]).value == pytest.approx(4.5 / 6)
    apart = probability_of_improvement([4, 5, 6], [1, 2, 3])
    assert apart.value == 1.0 and apart.interval.high == 1.0 and 0.4 < apart.interval.low < 0.6
    mirrored = probability_of_improvement([1, 2, 3], [4, 5, 6])
    assert ends(mirrored) == pytest.approx((0.0, 1 - apart.interval.low))
    low, high = ends(probability_of_improvement([1, 2], [1, 2]))
    assert low + high == pytest.approx(1) and low < 0.5


def test_a_profile_by_hand():
    found = performance_profile([0.2, 0.4, 0.4, 0.9], [1.0, 0.3, 0.4])
    assert found.thresholds == (0.3, 0.4, 1.0) and found.above == (0.75, 0.25, 0.0)
    # Wilson's interval of 0 of 4 is 0 to z^2 / (4 + z^2)
    assert (found.low[2], found.high[2]) == pytest.approx((0.0, 3.841459 / 7.841459), abs=1e-6)


def test_two_levels_by_hand():
    scores = {0: {"a": 1.0, "b": 3.0}, 1: {"a": 2.0, "b": 4.0, "c": 99.0}}
    found = seeds_and_clips(scores)
    half = 12.706205 * 0.5  # means 2 and 3: std / sqrt(2) is 1/2
    assert (found.mean, found.seeds, found.clips, found.left_out) == (2.5, 2, 2, 1)
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)
    assert (found.over_clips.low, found.over_clips.high) == (1.5, 3.5)  # the means of the two clips
    assert seeds_and_clips({0: {"a": 1.0}}).over_seeds is None
    with pytest.raises(ValueError, match="common"):
        seeds_and_clips({0: {"a": 1.0}, 1: {"b": 1.0}})


def test_a_difference_over_clips_by_hand():
    first = {0: {"a": 1.0, "b": 5.0}, 1: {"a": 3.0, "b": 7.0}}  # clips: 2 and 6
    found = difference_over_clips(first, {4: {"b": 3.0, "a": 1.0, "c": 0.0}})  # differences 1 and 3
    assert (found.low, found.high) == pytest.approx((2 - 12.706205, 2 + 12.706205), abs=1e-5)
    assert found.method == "Student's t, 2 clips" and difference_over_clips(first, {4: {"a": 1.0}}) is None


def test_paired_tests_by_hand():
    found = paired_test({0: 2.0, 1: 4.0, 2: 6.0, 7: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 9.0})
    # differences 1, 2, 3: t = 2 sqrt(3), and F = t^2 = 12 with 2 degrees of freedom has p = 1 - t / sqrt(2 + t^2)
    assert found.seeds == ((0, 1, 2), (0, 1, 2)) and found.difference == 2.0 and found.freedom == 2
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.p_exact == found.least_exact == 0.25  # 2 of the 8 signs
    equal = paired_test({0: 0.3, 1: 0.6}, {0: 0.2, 1: 0.5})
    assert equal.p_value == equal.p_exact == 0.5 and equal.std_error == 0  # no t test of what does not vary
    assert paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p_value == 1.0


def test_unpaired_tests_by_hand():
    found = unpaired_test({0: 1.0, 1: 3.0}, {2: 5.0, 3: 7.0})
    # variances 2 and 2: error sqrt(2), 2 degrees of freedom, t = -4 / sqrt(2) and t^2 = 8
    assert found.freedom == pytest.approx(2) and found.p_value == pytest.approx(1 - math.sqrt(8 / 10))
    assert found.p_exact == found.least_exact == pytest.approx(2 / 6)
    more = unpaired_test({0: 1.0, 1: 3.0, 2: 2.0}, {3: 5.0, 4: 7.0})
    assert more.p_exact == more.least_exact == pytest.approx(1 / 10)


def test_which_test_seeds_allow():
    three = {0: 1.0, 1: 2.0, 2: 2.5}
    assert seed_test(three, {1: 1.0, 2: 1.5}).kind == "paired"
    assert seed_test(three, {2: 1.0, 5: 1.5}).kind == "unpaired"
    assert seed_test(three, {0: 1.0}) is None and seed_test({0: 1.0}, {0: 2.0}) is None


def test_many_seeds_draw_the_exact_tests():
    numbers = np.random.default_rng(3).normal(size=(2, 20))
    first, second = ({seed: float(value) for seed, value in enumerate(row)} for row in numbers)
    for found in (paired_test(first, second), unpaired_test(first, second)):
        assert found.p_exact == pytest.approx(found.p_value, abs=0.03)


def test_holm_by_hand():
    # 4 known values: .01 x 4, .02 x 3, .03 x 2, .5 x 1, each at least as large as the one before
    assert holm([0.03, None, 0.01, 0.5, 0.02]) == pytest.approx([0.06, None, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "n", "power"), [(1.0, 10, 0.803), (0.5, 34, 0.808), (0.8, 15, 0.821)])
def test_power_as_published(effect, n, power):
    """Of G*Power's paired t test (Faul et al. 2007)."""
    assert power_of(effect, 1 / math.sqrt(n), n - 1) == pytest.approx(power, abs=1e-3)
    assert smallest_effect(1 / math.sqrt(n), n - 1, power=power) == pytest.approx(effect, abs=2e-3)


def test_power_at_its_ends():
    assert power_of(0.0, 1.0, 1) == pytest.approx(0.05, abs=1e-4)
    assert power_of(smallest_effect(0.3, 2), 0.3, 2) == pytest.approx(0.8)
    assert smallest_effect(0.0, 2) == 0.0


def test_the_stratified_bootstrap_keeps_to_its_strata():
    found = stratified_bootstrap([[0.0, 0.0], [1.0, 1.0, 1.0]], trimmed_mean)
    assert found.value == pytest.approx(2 / 3) and found.interval.low == found.interval.high  # nothing varies inside
    assert stratified_bootstrap([[1.0], [1.0, 2.0]], trimmed_mean).interval is None
    with pytest.raises(ValueError, match="strata"):
        stratified_bootstrap([], trimmed_mean)


def scores(values, higher=True) -> SeedScores:
    return SeedScores("judge", higher, values)


def test_verdicts():
    near = {"a": {0: 0.14, 1: 0.15}, "b": {0: 0.145, 1: 0.142}}
    (found,) = compare_configurations([scores(near)], baseline="a")
    assert found.outcome == "no difference shown" and found.adjusted == found.test.p_value > 0.05
    assert found.text.startswith("no difference shown; an effect below 0.1") and found.text.endswith("with 2 seeds")
    far = {"a": {0: 0.1, 1: 0.2, 2: 0.3}, "b": {0: 1.1, 1: 1.21, 2: 1.3}}
    assert compare_configurations([scores(far)])[0].text == "b better than a"
    assert compare_configurations([scores(far, higher=False)])[0].text == "b worse than a"
    assert compare_configurations([scores(far, higher=None)])[0].text == "b differs from a"
    (one,) = compare_configurations([scores({"a": {0: 1.0}, "b": {0: 9.0, 1: 9.1}})])
    assert one.text == ONE_SEED and one.test is None and one.adjusted is None
    (lost,) = compare_configurations([scores({"a": {0: 1.0, 1: 1.0}, "b": {0: 9.0, 1: math.nan}})])
    assert lost.text == "not comparable: a run of b has no finite value"


def test_all_pairs_of_all_metrics_are_corrected_together():
    three = {name: {0: place + 0.0, 1: place + 0.1, 2: place + 0.05} for place, name in enumerate("abc")}
    found = compare_configurations([scores(three), scores(three)])
    assert [(one.first, one.second) for one in found[:3]] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [one.adjusted for one in found] == holm([one.test.p_value for one in found])
    assert len(compare_configurations([scores(three)], baseline="b")) == 2
