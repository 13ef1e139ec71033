"""Blocks are compiled one by one, each kind once, whatever their number and the length of captions."""

from pathlib import Path

import pytest

# kinds of blocks; those of mmdim that mix text and frames make one more graph in which the length of text varies
KINDS = {"dit": 3, "full3d": 1, "stiv": 1, "open_sora_plan": 3, "mmdim": 2}
SCRIPT = Path(__file__).parent / "compiled_blocks.py"


def counted(commands, folder: Path, name: str, stride: int, *depths: int) -> list[list[int]]:
    """Graphs after each step, at each depth: see compiled_blocks.py."""
    words = repr(["", name, str(stride), *map(str, depths)])
    code = SCRIPT.read_text().replace("import sys\n", f"import sys\nsys.argv = {words}\n", 1)
    done = commands.run_code(code, cwd=folder)
    assert done.code == 0, done.err
    return [[int(word) for word in line.split()] for line in done.out.splitlines()]


def check(kinds: int, found: list[int], text: int) -> None:
    first, second_length, third_length, *buckets = found
    assert first == kinds
    assert second_length <= kinds + text and third_length == second_length
    for before, after in zip([third_length, *buckets], buckets, strict=False):
        assert after - before <= kinds  # one for each kind in a new bucket


def test_depth_makes_no_graph_and_another_bucket_one(commands, tmp_path):
    shallow, deep = counted(commands, tmp_path, "full3d", 3, 4, 28)
    assert shallow == deep == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_backbone_makes_the_graphs_of_its_kinds_of_blocks(name, commands, tmp_path):
    shallow, deep = counted(commands, tmp_path, name, 1, 6, 28)
    assert shallow == deep
    check(KINDS[name], deep, text=KINDS[name] if name == "mmdim" else 0)
