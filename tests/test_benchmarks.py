"""Benchmarks import what there is, so that they still run when they are needed."""

import ast
import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_of_vidlab_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidlab"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert found, f"line {node.lineno}: {node.module} has no {alias.name}"


@pytest.fixture
def gpu_step(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    precision = torch.get_float32_matmul_precision()
    yield importlib.import_module("gpu_step")
    torch.set_float32_matmul_precision(precision)


def table_of(gpu_step, folder: Path, *words: str) -> list[dict[str, str]]:
    tiny = ("--device", "cpu", "--tiny", "--repeat", "1", "--folder", str(folder))
    assert gpu_step.main([*tiny, *words]) == 0
    with (folder / "gpu_step.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_steps_are_measured_and_a_trace_is_written(gpu_step, tmp_path):
    cases = ("--cases", "skiparse 1152", "reference skiparse", "--profile", str(tmp_path / "traces"))
    ours, reference = table_of(gpu_step, tmp_path, "--modes", "eager", *cases)
    assert {row["model"] for row in (ours, reference)} == {"skiparse 1152", "reference skiparse"}
    for row in (ours, reference):
        # the bound: products at their rate, attention at its own, which counts 3.5 products for 3
        least = float(row["ms"]) * float(row["share_of_bound"])
        assert least == pytest.approx(float(row["bound_ms"]), rel=0.1, abs=0.05) and not row["error"]
    assert len(list((tmp_path / "traces").iterdir())) == 2


@pytest.mark.slow
def test_every_model_is_measured(gpu_step, tmp_path):
    rows = table_of(gpu_step, tmp_path)
    assert len(rows) == 2 * (len(gpu_step.OURS) + len(gpu_step.REFERENCES)) and not any(row["error"] for row in rows)


@pytest.mark.parametrize("kind", ["full", "space", "time", "single", "group"])
def test_the_reference_partitions_as_the_layouts_do(gpu_step, kind):
    """Attention in groups is the same, wherever groups are laid."""
    from vidlab.layers.attention import attend_within
    from vidlab.layers.kernels import sdpa
    from vidlab.layers.layouts import Full3D, Grid, GroupSkip, SingleSkip, Spatial, Temporal

    layout = {"full": Full3D(), "space": Spatial(), "time": Temporal(), "single": SingleSkip(2), "group": GroupSkip(2)}
    grid, heads = (2, 2, 4), torch.randn(3, 1, 16, 2, 8)
    into, back = importlib.import_module("reference_dit").partitions(kind, grid, 2)
    q, k, v = heads.transpose(2, 3)
    found = back(torch.nn.functional.scaled_dot_product_attention(into(q), into(k), into(v))).transpose(1, 2)
    torch.testing.assert_close(found, attend_within(layout[kind], Grid(*grid), sdpa, *heads))


def test_the_reference_computes_as_many_products_as_our_transformer(gpu_step):
    """Ours embeds the noise level and pools the text besides, which are few."""
    cpu = torch.device("cpu")
    ours, reference = (gpu_step.work_of(name, cpu, True).cost for name in ("full3d 1152", "reference full3d"))
    assert ours.tokens > 0 and reference.attention_flops == pytest.approx(
        2 * 3 * 4 * 64 * 64 * (64 + 8), rel=1e-6
    )  # two blocks, forward and twice backward, q k^T and the sum of v, of 64 tokens and 8 of text
