"""Indexes made by anybody: what they say is used, or one sentence says what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlab.curation.index_report import report_text
from vidlab.data.storage import index_checks
from vidlab.data.storage.clip_row import ClipRow, schema, to_columns
from vidlab.data.storage.index import ClipIndex, write_index
from vidlab.data.storage.index_checks import check_size
from vidlab.data.storage.row_store import RowStore, RowStoreWriter
from vidlab.errors import CorruptClipError, DataError, UserError

CLIPS = 6
NUMBERS = ("frames", "height", "width", "fps", "offset", "size", "duration")


def rows() -> list[ClipRow]:
    return [
        ClipRow(
            f"k{n}", f"{n // 3}.tar", 512, 99, 8, 32, 48, 8.0, 1.0, ("one",), "val" if n == 5 else "train", "", None
        )
        for n in range(CLIPS)
    ]


def written(folder: Path, change: Callable[[pa.Table], pa.Table], **header: Any) -> Path:
    """An index written by another program: without a file of rows, with ``change`` made to its table."""
    write_index(folder, rows(), {})
    with pq.ParquetFile(folder / "index.parquet") as file:
        table, told = file.read(), json.loads(file.metadata.metadata[b"vidlab"]) | {"rows": None} | header
    for path in folder.iterdir():
        path.unlink()
    pq.write_table(change(table).replace_schema_metadata({"vidlab": json.dumps(told)}), folder / "index.parquet")
    return folder


def column(name: str, values: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """Put values in the place of a column."""

    def change(table: pa.Table) -> pa.Table:
        array = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, array)

    return change


def one(value: Any, name: str, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """Give the third clip another value."""
    return lambda table: column(name, [*table[name].to_pylist()[:2], value, *table[name].to_pylist()[3:]], kind)(table)


def used(folder: Path) -> ClipIndex:
    """All that is done with an index before and during training."""
    index = ClipIndex.open(folder)
    for name in NUMBERS:
        index.numbers(name)
    index.shard_numbers()
    report_text(index, "set", folder)
    for part in (index.select("train", 4), index.select("val")):
        for position in range(len(part)):
            part.row(position)
    return index


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (0, "frames", "clip 2 has frames=0"),
        (-7, "height", "clip 2 has height=-7"),
        (None, "width", "clip 2 has no width"),
        (float("nan"), "fps", "clip 2 has fps=nan"),
        (0.0, "fps", "clip 2 has fps=0.0"),
        (float("inf"), "duration", "clip 2 has duration=inf"),
        (-512, "offset", "clip 2 has offset=-512"),
        (-1, "size", "clip 2 has size=-1"),
        (None, "split", "clip 2 has no split"),
        (None, "shard", "clip 2 has no shard"),
    ],
)
def test_numbers_that_no_clip_has_are_one_sentence(tmp_path, value, name, said):
    with pytest.raises(DataError, match=rf"index\.parquet cannot be read \(.*{said}"):
        used(written(tmp_path, one(value, name)))
    with pytest.raises(CorruptClipError, match=r"index\.parquet, clip 2: "):
        ClipIndex.open(tmp_path).row(2)
    assert ClipIndex.open(tmp_path).row(3).key == "k3"


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (None, "key", "None"),
        (None, "captions", "TypeError"),
        ([], "captions", "it has no caption"),
        (["a", None], "captions", "None|TypeCheckError"),  # the tests' own check looks at one of the captions
        ("{", "factors", "JSONDecodeError"),
        ("[" * 100_000, "factors", "RecursionError"),
        ("[1]", "factors", "TypeError"),
        ("../../x.tar", "shard", r"shard \.\./\.\./x\.tar is not below the data set's folder"),
        ("/etc/passwd", "shard", "is not below"),
        ("a\0b", "shard", r"shard a\\x00b is not below"),
    ],
)
def test_a_row_that_is_none_is_the_failure_of_its_clip(tmp_path, value, name, said):
    index = ClipIndex.open(written(tmp_path, one(value, name)))
    with pytest.raises(CorruptClipError, match=rf"index\.parquet, clip 2: .*{said}"):
        index.row(2)
    assert [index.row(n).key for n in (0, 1, 3, 4, 5)] == ["k0", "k1", "k3", "k4", "k5"]


@pytest.mark.parametrize(
    ("name", "values", "kind", "said"),
    [
        ("frames", ["8"] * CLIPS, pa.string(), "Unsupported cast|holds texts|cast"),
        ("frames", [8.5] * CLIPS, pa.float64(), "8.5"),
        ("frames", [2**40] * CLIPS, pa.int64(), "1099511627776"),
        ("key", [b"\xff"] * CLIPS, pa.binary(), "UTF8|UTF-8"),
        ("key", [[1]] * CLIPS, pa.list_(pa.int8()), "cast"),
        ("split", [1] * CLIPS, pa.int32(), ""),
        ("captions", ["one"] * CLIPS, pa.string(), "cast"),
        ("scores", [1.5] * CLIPS, pa.float64(), "cast"),
        ("fps", [{"a": 1}] * CLIPS, pa.struct([("a", pa.int8())]), "cast"),
    ],
)
def test_columns_of_other_types_are_one_sentence(tmp_path, name, values, kind, said):
    try:
        used(written(tmp_path, column(name, values, kind)))
    except UserError as error:
        assert "Traceback" not in str(error) and "index.parquet" in str(error)
    else:
        assert name == "split"  # numbers are texts to Arrow; no clip is in such a split


def test_types_of_other_programs_are_read(tmp_path):
    """Polars writes large strings, pandas categories and 64-bit numbers."""

    def change(table: pa.Table) -> pa.Table:
        kinds = {"key": pa.large_string(), "frames": pa.int64(), "height": pa.int16(), "fps": pa.float32(),
                 "shard": pa.large_string(), "split": pa.dictionary(pa.int8(), pa.string()),
                 "captions": pa.large_list(pa.large_string())}  # fmt: skip
        for name, kind in kinds.items():
            table = column(name, table[name].to_pylist(), kind)(table)
        return table

    index = used(written(tmp_path, change))
    assert [index.row(n) for n in range(CLIPS)] == rows()
    assert index.numbers("frames").tolist() == [8] * CLIPS and index.shard_numbers().tolist() == [0, 0, 0, 1, 1, 1]
    assert index.select("val").row(0).key == "k5"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"root": 5}, "root=5"),
        ({"root": "a\0"}, "root="),
        ({"rows": "../../../tmp/x"}, "rows="),
        ({"hash": None}, "lacks a hash"),
        ({"metadata": []}, "or metadata"),
        ({"metadata": {"rejected": ["a"]}}, "rejected"),
        ({"metadata": {"rejected": {"a": 5}}}, "rejected"),
    ],
)
def test_a_header_of_other_values_is_one_sentence(tmp_path, header, said):
    with pytest.raises(DataError, match=rf"index\.parquet cannot be read \(its header .*{said}"):
        used(written(tmp_path, lambda table: table, **header))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"5", b"null", b""])
def test_a_header_that_is_none_is_one_sentence(tmp_path, text):
    table = pq.read_table(written(tmp_path, lambda table: table) / "index.parquet")
    pq.write_table(table.replace_schema_metadata({"vidlab": text}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet cannot be read \(its header is no"):
        used(tmp_path)


def test_a_text_that_is_not_in_the_dictionary_is_damage(tmp_path, monkeypatch):
    """A wrong bit in a page's header makes codes of what are none."""
    write_index(tmp_path, rows(), {})
    index = ClipIndex.open(tmp_path)
    wrong = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0, 0, 0], pa.int32()), pa.array(["0.tar"]), safe=False)
    monkeypatch.setattr(index, "_parts", lambda *_, **__: iter([(0, wrong, np.arange(CLIPS))]))
    with pytest.raises(DataError, match="the column shard is damaged"):
        index.shard_numbers()


def test_more_rows_than_a_file_can_hold_take_no_memory(tmp_path, monkeypatch):
    """Masks and columns of all rows are made, and a file may say to have any number of them."""
    written(tmp_path, lambda table: table)
    check_size(6, (tmp_path / "index.parquet").stat().st_size)
    for rows in (-1, 64_001, 2**62):
        with pytest.raises(ValueError, match=f"it says to have {rows} rows in 1000 bytes"):
            check_size(rows, 1000)
    monkeypatch.setattr(index_checks, "ROWS_PER_BYTE", 0.0001)
    with pytest.raises(DataError, match=r"cannot be read \(it says to have 6 rows in \d+ bytes\)"):
        ClipIndex.open(tmp_path)


def test_a_file_of_rows_made_by_hand_never_reaches_memory_that_is_not_its_own(tmp_path):
    """Right checksums, wrong offsets of texts: Arrow would read what they point to."""
    batch = pa.table(to_columns(rows()), schema=schema()).to_batches()[0]
    offsets = pa.py_buffer((b"\0\0\0\0" + (2**30).to_bytes(4, "little")) * CLIPS)
    key = pa.StringArray.from_buffers(CLIPS, offsets, batch.column(0).buffers()[2])
    with RowStoreWriter(tmp_path / "rows") as store:
        store._append([pa.record_batch([key, *batch.columns[1:]], schema=schema())])
    with pytest.raises(ValueError, match="out of bounds"):
        RowStore(tmp_path / "rows").row(1)


def test_an_index_in_a_folder_without_room_for_rows_says_so(tmp_path, monkeypatch):
    written(tmp_path, lambda table: table)
    monkeypatch.setenv("VIDLAB_CACHE", "/proc/nowhere")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"/proc/nowhere/rows/.* cannot be written"):
        ClipIndex.open(tmp_path)
