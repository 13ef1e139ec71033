"""A JSON file of a stranger may nest deeper than Python's parser goes: each reader says so in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vidlab.data.storage.latent_cache import CacheHeader
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.lab.evaluation.entries import _from_published
from vidlab.lab.runs.resolve import read_run_record
from vidlab.lab.tracking.metric_queue import read_points
from vidlab.metrics.vbench.scores import read_results

BRACKETS = "[" * 200_000
READERS: dict[str, Callable[[Path], object]] = {
    "run.json": lambda file: read_run_record(file.parent),
    "cache.json": lambda file: CacheHeader.read(file.parent),
    "config.json": lambda file: _from_published(file.parent),
    "settings.json": read_json,
    "results.json": lambda file: read_results([file]),
}


@pytest.mark.parametrize("name", READERS)
def test_brackets_without_end_are_refused(tmp_path, name):
    (tmp_path / name).write_text(BRACKETS)
    with pytest.raises(UserError, match=name):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize(
    "line",
    [
        BRACKETS,
        "\udcff",
        '{"key": "loss", "value": "1", "step": 1, "timestamp": 1}',
        '{"key": "loss", "value": 1.0, "step": true, "timestamp": 1}',
        '{"key": 3, "value": 1.0, "step": 1, "timestamp": 1}',
    ],
)
def test_a_damaged_line_of_unsent_metrics_costs_that_line(tmp_path, line):
    good = '{"key": "loss", "value": 0.5, "step": 1, "timestamp": 1}'
    (tmp_path / "unsent.jsonl").write_text(f"{line}\n{good}\n", errors="surrogateescape")
    with pytest.warns(RuntimeWarning, match="1 damaged lines are left out"):
        (point,) = read_points(tmp_path / "unsent.jsonl")
    assert (point.key, point.value, point.step) == ("loss", 0.5, 1)


@pytest.mark.parametrize(
    "content", ['{"mlflow_run_id": 5, "experiment": "a"}', '{"mlflow_run_id": null, "experiment": []}']
)
def test_a_record_of_other_types_is_damaged(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json is damaged"):
        read_run_record(tmp_path)
