"""Rows of tables and items of lists: an odd one is named, and takes no other with it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlab.data.tables.csv_table import CsvTable, read_table
from vidlab.data.tables.files import ParquetTable
from vidlab.data.tables.json_list import read_json_list
from vidlab.data.tables.table_rows import BadItem, make_each, read_lines
from vidlab.errors import DataError


def csv_rows(tmp_path, text: str | bytes) -> list:
    """The captions by row; a pair of place and reason for a bad one."""
    file = tmp_path / "t.csv"
    file.write_bytes(b"file,caption\n" + (text.encode() if isinstance(text, str) else text))
    rows = CsvTable(file).rows(("file", "caption"))
    return [(r.name, r.reason) if isinstance(r, BadItem) else r.cells["caption"] for r in rows]


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        ("A man.\u2028He smiles\x85now\x0cthen", "A man.\u2028He smiles\x85now\x0cthen"),
        ('"Hello" she said', '"Hello" she said'),
        ('he said "hi"', 'he said "hi"'),
        ('"a ""red"" ball, rolling"', 'a "red" ball, rolling'),
        ('"two\nlines, really"', "two\nlines, really"),
        (r"C:\new [a, b]"[:6], "C:\\new"),
        ("[x] ${y} \\n", "[x] ${y} \\n"),
        ("nul \x00 inside", "nul \x00 inside"),
        ("extra,,", "extra"),
    ],
)
def test_cells_arrive_as_written(tmp_path, cell, caption):
    assert csv_rows(tmp_path, f"1.mp4,{cell}\n2.mp4,next\n") == [caption, "next"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'1.mp4,"A man says hello', "double quote"),
        (b'1.mp4,"A ""man"" says" hello, again', "double quote"),
        (b"1.mp4", "has 1 of 2 cells"),
        (b"1.mp4,a man, walking", "has 3 cells where the header has 2; write a text with commas"),
        (b"1.mp4,caf\xe9", "is not UTF-8 text"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_takes_no_other(tmp_path, line, reason):
    rows = csv_rows(tmp_path, b"0.mp4,first\n" + line + b'\n2.mp4,"third ""x"""\n3.mp4,the end"\n4.mp4,last\n')
    assert [rows[0], *rows[2:]] == ["first", 'third "x"', 'the end"', "last"]
    assert rows[1][0] == "t.csv, line 3" and reason in rows[1][1]


def test_a_quote_without_end_costs_one_row_of_many(tmp_path):
    rows = csv_rows(tmp_path, '0.mp4,"open\n' + "".join(f"{n}.mp4,caption {n}\n" for n in range(1, 5000)))
    assert rows[0][0] == "t.csv, line 2" and rows[1:] == [f"caption {n}" for n in range(1, 5000)]


def test_empty_rows_are_counted(tmp_path, caplog):
    assert csv_rows(tmp_path, "1.mp4,a\n\n,,\n2.mp4,b\n\n") == ["a", "b"]
    assert "t.csv: 3 empty rows are passed over" in caplog.text


def test_a_cell_longer_than_the_csv_modules_limit(tmp_path):
    assert csv_rows(tmp_path, f"1.mp4,{'x' * 200_000}\n2.mp4,b\n")[1] == "b"


def test_files_of_other_encodings_are_one_sentence(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("file,caption\na,b\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"t\.csv is UTF-16 text; save it as UTF-8"):
        CsvTable(file)
    file.write_bytes(b"file,scores\n")
    with pytest.raises(DataError, match=r"lacks the columns \['caption'\]"):
        list(read_table(file, ("file", "caption")))


def items(tmp_path, text: str | bytes) -> list:
    file = tmp_path / "list.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(i.name, i.reason) if isinstance(i, BadItem) else i.cells for i in read_json_list(file)]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ('{"n": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"n": ' + "[" * 5000 + "]" * 5000 + "}", "RecursionError"),
        ("{'n': 1}", "Expecting property name"),
        ("", "Expecting value"),
        ('"text, with [brackets]"', "is a str, not an object"),
        ("null", "is a NoneType"),
    ],
)
def test_an_odd_item_is_named_and_the_others_are_read(tmp_path, odd, reason):
    good = {"cap": 'a "b" [c}, \\'}
    first, bad, last = items(tmp_path, f"[{json.dumps(good)}, {odd}, {json.dumps(good)}]")
    assert first == last == good and bad[0] == "list.json, item 1" and reason in bad[1]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b"', '{"a": [1, 2], "b": 3,}', "", "[}]", '[{"a": 1}] more'])
def test_what_is_no_list_is_one_sentence(tmp_path, text):
    with pytest.raises(DataError, match=r"list\.json cannot be read as JSON"):
        items(tmp_path, text)
    with pytest.raises(DataError, match="is not a JSON list"):
        items(tmp_path, "{}")


def test_lists_without_items(tmp_path):
    assert items(tmp_path, "[]") == [] and items(tmp_path, b'\xef\xbb\xbf[{"a": "\\ud83d"}]') == [{"a": "\ud83d"}]


def test_odd_values_of_a_parquet_table(tmp_path):
    captions = pa.array([b"fine", b"caf\xe9", b"last"]).view(pa.string())
    pq.write_table(pa.table({"file": ["a", "b", "c"], "caption": captions}), tmp_path / "t.parquet")
    first, bad, last = ParquetTable(tmp_path / "t.parquet").rows(("file", "caption"))
    assert (first.cells["caption"], last.cells["caption"]) == ("fine", "last")
    assert (bad.name, bad.reason) == ("t.parquet, row 1", "is not UTF-8 text")


def test_lines_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a/x.avi 1\n\ncaf\xe9.avi 2\r\nb/y.avi 3\r\n")
    first, bad, last = read_lines(tmp_path / "list.txt")
    assert (first.cells["line"], bad.name, last.cells["line"]) == ("a/x.avi 1", "list.txt, line 3", "b/y.avi 3")


def test_whatever_a_row_raises_is_its_failure(tmp_path):
    (tmp_path / "list.txt").write_text("1\nx\n2\n")
    one, bad, two = make_each(read_lines(tmp_path / "list.txt"), lambda row: int(row["line"]))
    assert (one, two) == (1, 2) and bad.name == "list.txt, line 2" and "ValueError" in bad.reason
