"""Captions arrive as they were written."""

import math

import pytest

from vidlab.data.tables.captions import caption_lines, captions_beside, captions_of
from vidlab.errors import CorruptClipError


def test_only_ends_of_lines_end_a_line():
    text = "one\u2028still one\r\ntwo\x0bstill two\rthree\x85 and\x0cmore\n\n \n"
    assert caption_lines(text) == ["one still one", "two still two", "three and more"]


@pytest.mark.parametrize("text", ['"Hello" she said', r"C:\new\table", "[a, b]", "${x} {y}", "it''s", "数据 😀", '"'])
def test_captions_stay_as_written(text):
    assert captions_of(text) == [text] and caption_lines(text) == [text]


@pytest.mark.parametrize("value", [None, "", " \n", math.nan, [], [None, math.nan, ""]])
def test_no_caption(value):
    assert captions_of(value) == []


def test_lists_are_several_captions():
    assert captions_of(["short", "a  longer one", "short", None, 3]) == ["short", "a longer one", "3"]
    assert captions_of(0.5) == ["0.5"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "a"}, "type dict"),
        (["a", ["b"]], "type list"),
        (True, "type bool"),
        ("half a pair \ud83d", "half of a surrogate pair"),
        pytest.param(10**5000, "thousands of digits", id="huge"),
    ],
)
def test_what_is_no_caption_is_told(value, reason):
    with pytest.raises(CorruptClipError, match=reason):
        captions_of(value)


def test_text_files_are_utf8_or_named(tmp_path):
    file = tmp_path / "clip.txt"
    file.write_bytes("\ufeffa café\n".encode())
    assert captions_beside(file) == ["a café"]
    file.write_bytes("a café".encode("latin-1"))
    with pytest.raises(CorruptClipError, match=r"^its \.txt is not UTF-8 text \(byte 5 is 0xe9\); save it as UTF-8"):
        captions_beside(file)
    with pytest.raises(CorruptClipError, match=r"its \.txt cannot be read"):
        captions_beside(tmp_path / "gone.txt")
