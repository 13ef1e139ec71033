"""The notebooks: their cells run on a sweep from the store, and they are committed with what they showed."""

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(name: str) -> list[str]:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_ablation_of_a_sweep(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDLAB_SWEEP", str(sweep.folder))
    matplotlib.use("agg")
    shown: dict[str, object] = {}
    for cell in code_of("ablation"):
        exec(compile(cell, "ablation.ipynb", "exec"), shown)
    table = shown["results"](shown["comparison"])
    assert list(table.loc["val/x0_mse", "mean"].round(4)) == [0.31, 0.2117]
    assert table.loc[("val/x0_mse", "model=full3d"), "p"] < 0.05 and table["seeds"].eq(3).all()
    curves = shown["frame"]
    mine = curves[
        (curves["configuration"] == "model=2p1d") & (curves["metric"] == "val/x0_mse") & (curves["seed"] == 1)
    ]
    assert list(mine["value"]) == [0.9, 0.32] and list(mine["flops"]) == [1e9, 2e9]
    printed = capsys.readouterr().out
    assert "model=full3d against model=2p1d: model=full3d better" in printed and "left out: job 6 (failed)" in printed
    assert (tmp_path / "comparisons" / "contact_sheet.png").is_file()


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["ablation", "compare_backbones", "data_plan", "sample"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_what_they_showed(path):
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 2
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert len(text) < 3_000_000
    for place in ("/home/", "/root/", "/tmp/", "/work/"):
        assert place not in text
