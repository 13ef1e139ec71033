from pathlib import Path

import pytest

from vidlab.lab.evaluation.comparison.over_clips import compare, comparison_table
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.evaluation.scoring import Scores
from vidlab.metrics.results import MetricResult


def result(scores, name="score", higher=True, **others) -> MetricResult:
    settings = {"frames": 8, "stride": 1, "resolution": (32, 32), "resize": "none"} | others
    value = sum(scores) / len(scores)
    keys = tuple(range(len(scores)))
    return MetricResult(name, value, higher, len(scores), None, keys=keys, scores=tuple(scores), **settings)


def subject(name, *results) -> Evaluated:
    return Evaluated(name, str(Path(name)), (), Scores({one.name: one for one in results}))


def test_a_constant_difference_is_told_and_noise_is_not():
    base = [0.1 * (n % 7) for n in range(40)]
    shifted = [value + 0.05 for value in base]
    swapped = [value + (0.05 if n % 2 else -0.05) for n, value in enumerate(base)]
    (row,) = compare([subject("a", result(base)), subject("b", result(shifted))])
    assert row.verdict == "better" and row.difference.paired
    assert row.difference.value == pytest.approx(0.05) and row.adjusted < 0.001
    (row,) = compare([subject("a", result(base)), subject("b", result(swapped))])
    assert row.verdict == "no difference shown"


def test_lower_can_be_better_and_neither_can_be():
    base, more = [0.0, 0.1, 0.2, 0.3], [1.0, 1.1, 1.2, 1.3]
    for higher, verdict in ((False, "worse"), (None, "differs"), (True, "better")):
        (row,) = compare([subject("a", result(base, higher=higher)), subject("b", result(more, higher=higher))])
        assert row.verdict == verdict


def test_values_under_other_conditions_are_not_compared():
    rows = compare([subject("a", result([1.0, 2.0])), subject("b", result([1.0, 2.0], frames=16))])
    assert rows[0].difference is None and rows[0].verdict == "not comparable: frames 16 and 8"
    text = comparison_table([subject("a", result([1.0, 2.0])), subject("b", result([1.0, 2.0], frames=16))], rows)
    assert "not comparable: frames 16 and 8" in text


def test_many_true_zeros_do_not_give_a_significant_one():
    import random

    draw = random.Random(1)
    many = [f"m{n}" for n in range(40)]
    base = {name: [draw.gauss(0, 1) for _ in range(30)] for name in many}
    other = {name: [draw.gauss(0, 1) for _ in range(30)] for name in many}
    rows = compare(
        [
            subject("a", *(result(base[name], name) for name in many)),
            subject("b", *(result(other[name], name) for name in many)),
        ]
    )
    assert sum(row.difference.p_value < 0.05 for row in rows) >= 1  # alone, some would
    assert {row.verdict for row in rows} == {"no difference shown"}
