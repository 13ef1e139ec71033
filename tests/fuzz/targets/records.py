"""Small records: run.json, results of VBench, settings of models."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from ..edits import EDITS, Edit
from ..target import Found, Subject, Target, digest


def make_run(folder: Path) -> Sequence[Subject]:
    from vidlab.lab.runs.resolve import write_run_record

    write_run_record(folder, "0123456789abcdef0123456789abcdef", "vidlab")
    return [Subject("run.json", "json", countable=False)]


def read_run(folder: Path) -> Found:
    from vidlab.lab.runs.resolve import read_run_record

    record = read_run_record(folder)
    assert record is None or isinstance(record.experiment, str), record
    assert record is None or isinstance(record.mlflow_run_id, str | None), record
    return Found({"run": digest(record)})


def make_vbench(folder: Path) -> Sequence[Subject]:
    from vidlab.metrics.vbench.presets import PRESETS

    videos = [{"video_path": f"a/{n}.mp4", "video_results": 0.5} for n in range(2)]
    content = {name: [0.5 + 0.01 * n, videos] for n, name in enumerate(PRESETS["vbench_t2v"].dimensions)}
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    return [Subject("results.json", "json", countable=False)]


def read_vbench(folder: Path) -> Found:
    from vidlab.metrics.vbench.scores import aggregate, read_results, report

    found = read_results([folder / "results.json"])
    result = aggregate({name: item.score for name, item in found.items()}, "vbench_t2v")
    report(result)
    return Found({"total": digest(result.total), **{name: digest(item.score) for name, item in found.items()}})


def make_unsent(folder: Path) -> Sequence[Subject]:
    from vidlab.lab.tracking.metric_queue import MetricPoint, write_points

    write_points(folder / "unsent.jsonl", [MetricPoint("loss", n / 2, n, 1_700_000_000_000 + n) for n in range(4)])
    lines = [Subject("unsent.jsonl", (in_line(n),), frozenset([str(n)])) for n in range(4)]
    return [Subject("unsent.jsonl", "text", countable=False), *lines]


def in_line(number: int) -> Edit:
    """One line by a damaged one."""

    def change(random: Random, data: bytes) -> tuple[bytes, str]:
        lines = data.split(b"\n")
        lines[number], said = random.choice(EDITS["json"])(random, lines[number] or b" ")
        lines[number] = lines[number].replace(b"\n", b" ").replace(b"\r", b" ")
        return b"\n".join(lines), f"line {number}: {said}"

    return change


def read_unsent(folder: Path) -> Found:
    from vidlab.lab.tracking.metric_queue import read_points

    points = read_points(folder / "unsent.jsonl")
    assert all(isinstance(point.value, float | int) and isinstance(point.step, int) for point in points), points
    return Found({str(point.timestamp - 1_700_000_000_000): digest(point) for point in points})


TARGETS = (
    Target("record.run", make_run, read_run),
    Target("record.vbench", make_vbench, read_vbench),
    Target("record.unsent_metrics", make_unsent, read_unsent),
)
