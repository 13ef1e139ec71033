import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlab.clip import Factors, ObjectFactors
from vidlab.data.index import COLUMNS, ClipIndex, ClipRow, factors_from_json, factors_to_json, write_index
from vidlab.errors import DataError

# Values by field name, so that the test holds for whatever factors a rendered clip has.
SAMPLES = {str: "red", bool: True, int: 3, tuple[float, ...]: (0.25, 0.5), tuple[str, ...]: ("red", "plain")}


def some_factors() -> Factors:
    def filled(kind: type, **given):
        rest = {k: SAMPLES[v] for k, v in kind.__annotations__.items() if k not in given}
        return kind(**given, **rest)

    return filled(Factors, objects=(filled(ObjectFactors), filled(ObjectFactors, shape="disc")))


def row(key: str = "a", **changes) -> ClipRow:
    first = ClipRow(key, "000000.tar", 512, 99, 8, 32, 48, 8.0, 1.0, ("one", "two"), "train", "film", None)
    return replace(first, **changes)


def test_rows_come_back_as_written(tmp_path):
    rows = [row("a"), row("b", factors=some_factors(), split="val", fps=29.97, duration=8 / 29.97)]
    write_index(tmp_path, rows, {"difficulty": "easy"})
    index = ClipIndex.open(tmp_path)
    assert len(index) == 2 and [index.row(0), index.row(1)] == rows
    assert index.metadata == {"difficulty": "easy"} and index.root == tmp_path
    assert index.column("key") == ["a", "b"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[1] == "index.parquet" and names[0].endswith(".rows.arrow")
    for position in (-1, 2):
        with pytest.raises(IndexError):
            index.row(position)


def test_factors_are_plain_json():
    text = factors_to_json(some_factors())
    assert json.loads(text)["objects"][1]["shape"] == "disc"
    assert factors_from_json(text) == some_factors()
    assert factors_to_json(None) is None and factors_from_json(None) is None


def test_select_keeps_order_and_identity(tmp_path):
    lengths = {"a": 8, "b": 20, "c": 12, "d": 30}
    write_index(tmp_path, [row(k, frames=n, split="val" if k == "d" else "train") for k, n in lengths.items()], {})
    index = ClipIndex.open(tmp_path)
    assert index.select("train", min_frames=12).column("key") == ["b", "c"]
    assert index.select(min_frames=12).column("key") == ["b", "c", "d"]
    assert index.select("val").row(0).key == "d" and len(index.select("test")) == 0
    assert index.select("train").hash == index.hash


def test_hash_is_of_the_clips_not_of_where_they_lie(tmp_path):
    def hash_of(*rows: ClipRow, **metadata) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_index(folder, list(rows), metadata)
        return ClipIndex.open(folder).hash

    same = hash_of(row("a"), row("b"))
    assert same == hash_of(row("a", shard="000009.tar", offset=0), row("b"))
    changed = [
        hash_of(row("b"), row("a")),
        hash_of(row("a", captions=("other",)), row("b")),
        hash_of(row("a", split="val"), row("b")),
        hash_of(row("a", frames=9), row("b")),
        hash_of(row("a", factors=some_factors()), row("b")),
        hash_of(row("a"), row("b"), version=2),
        hash_of(row("a")),
    ]
    assert same not in changed and len(set(changed)) == len(changed)


def test_two_clips_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a'"):
        write_index(tmp_path, [row("a"), row("a")], {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_an_index_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ClipIndex.open(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        ClipIndex.open(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"not an index of clips.*shard"):
        ClipIndex.open(tmp_path)
    pq.write_table(pa.table({name: ["a"] for name in COLUMNS}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="header"):
        ClipIndex.open(tmp_path)
