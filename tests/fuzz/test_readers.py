"""Damaged files through every reader: a result, a name among the unreadable, or one sentence; never anything else.

``python tests/fuzz`` goes on where these stop.
"""

import pytest

from .campaign import PATIENCE, Tally, Watched, run_cases
from .targets import TARGETS

CASES = 12  # of a reader in ``pytest -m slow``, and a quarter of them in every run of the tests


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    watched = Watched(tmp_path_factory.mktemp("fuzz"))
    yield watched
    watched.close()


@pytest.mark.parametrize("cases", [CASES // 4, pytest.param(CASES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.slow])
def test_damaged_files_are_read_or_named_or_refused(worker, target, cases):
    tally = Tally()
    run_cases(worker, tally, target, range(cases))
    assert tally.counts[target].total() == cases
    assert not tally.failures, "\n\n".join(failure.text() for failure in tally.failures.values())


@pytest.mark.parametrize(
    ("fault", "cases"),
    [("traceback", 3), ("crash", 3), ("memory", 1), ("lost", 12), ("altered", 12)],
)
def test_each_fault_is_found(worker, fault, cases):
    tally = Tally()
    run_cases(worker, tally, f"broken.{fault}", range(cases))
    found = tally.counts[f"broken.{fault}"]
    assert found[fault] and found.total() == cases
    (failure,) = tally.failures.values()
    assert f"python tests/fuzz --target broken.{fault} --case {failure.case}" in failure.text()
    assert f"{found[fault]} {fault}" in tally.table()
    if fault == "traceback":
        assert "stumble" in failure.text() and "IndexError" in failure.text()


def test_a_hang_ends_and_the_next_case_follows(worker):
    worker.patience = 1
    try:
        found = dict(worker.run("broken.hang", range(2)))
    finally:
        worker.patience = PATIENCE
    assert [found[case].outcome for case in (0, 1)] == ["hang", "hang"]


def test_a_reader_without_fault_has_none(worker):
    tally = Tally()
    run_cases(worker, tally, "broken.none", range(12))
    assert tally.counts["broken.none"] == {"refused": 12} and not tally.failures
