"""Blocks are compiled one by one, each kind once, whatever the length of captions: see compiled_blocks.py."""

from pathlib import Path

import pytest

# kinds of blocks; of single-stream blocks of mmdim each text length but the first makes one graph in which it varies
KINDS = {"dit": 3, "full3d": 1, "stiv": 1, "open_sora_plan": 3, "mmdim": 2}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "dit" else pytest.mark.slow) for name in KINDS]
)
def test_a_graph_for_each_kind_of_block_and_one_more_at_most_where_captions_have_other_lengths(
    name, commands, tmp_path
):
    script = Path(__file__).parent / "compiled_blocks.py"
    done = commands.run_code(script.read_text().replace("sys.argv[1]", repr(name)), cwd=tmp_path)
    assert done.code == 0, done.err
    graphs, breaks = done.out.split(" breaks ")
    first, *later = map(int, graphs.split())
    assert int(breaks) == 0
    assert first == KINDS[name]
    assert max(later) <= 3 * KINDS[name] and later[1:] == later[:-1]
