"""Names of files as strangers wrote them."""

import os
import unicodedata
from pathlib import Path

import pytest

from vidlab.data.names import FolderPaths, file_below, is_utf8, reason_of, shown, walk_files
from vidlab.errors import CorruptClipError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name.mp4", "plain name.mp4"),
        ("señor 数据.mp4", "señor 数据.mp4"),
        (os.fsdecode(b"caf\xe9.mp4"), r"caf\xe9.mp4"),
        ("red \x1b[31m", r"red \x1b[31m"),
        ("half \ud83d", r"half \ud83d"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_names_are_printed_safely(text, expected):
    assert shown(text) == expected


def test_what_cannot_be_stored_is_told():
    assert is_utf8("数据") and not is_utf8(os.fsdecode(b"caf\xe9")) and not is_utf8("\ud83d")


def test_reasons_are_one_safe_line():
    assert reason_of(CorruptClipError("a.mp4: the file is empty"), "a.mp4") == "the file is empty"
    assert reason_of(ValueError("bad\x1b[2J\nnumber")) == r"ValueError: bad\x1b[2J\nnumber"
    assert reason_of(OverflowError("9" * 5000)) == "OverflowError: " + "9" * 285 + "..."


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in walk_files(folder)]


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("set/a/1", "set/.hidden/2", "set/.3", "far/b/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set/again").symlink_to("a")  # sorts before what it leads to only by luck: the real place is kept
    (tmp_path / "set/0").symlink_to("a")
    (tmp_path / "set/a/up").symlink_to("..")
    (tmp_path / "set/more").symlink_to(tmp_path / "far")
    (tmp_path / "far/round").symlink_to(tmp_path / "set")
    (tmp_path / "set/gone").symlink_to("nowhere")
    assert files(tmp_path / "set") == ["gone", "a/1", "more/b/4"]


def test_a_link_to_a_folder_above_reads_nothing_twice(tmp_path):
    (tmp_path / "top/set").mkdir(parents=True)
    (tmp_path / "top/set/1").touch()
    (tmp_path / "top/2").touch()
    (tmp_path / "top/set/up").symlink_to(tmp_path / "top")
    assert files(tmp_path / "top/set") == ["1", "up/2"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folders_are_named(tmp_path, caplog):
    (tmp_path / "locked").mkdir(mode=0)
    assert files(tmp_path) == [] and "locked cannot be read (Permission denied)" in caplog.text


@pytest.mark.parametrize(("there", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_of_either_form_name_one_file(tmp_path, there, asked):
    stored = tmp_path / unicodedata.normalize(there, "señora/niño.mp4")
    stored.parent.mkdir()
    stored.touch()
    name = stored.relative_to(tmp_path).as_posix()
    assert file_below(tmp_path, unicodedata.normalize(asked, name)) == name
    mixed = f"{stored.parent.name}/{unicodedata.normalize(asked, stored.name)}"
    assert file_below(tmp_path, mixed) == name
    assert file_below(stored.parent, unicodedata.normalize(asked, stored.name)) == stored.name
    for absent in ("señora/nino.mp4", "a\0b", "x" * 5000, "\ud83d"):
        assert file_below(tmp_path, absent) is None


def test_entries_stay_in_their_folder(tmp_path):
    folder = tmp_path / "mount/set"
    (folder / "in").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "mount")
    (tmp_path / "direct").symlink_to(folder)
    (folder / "outside").symlink_to(tmp_path)
    paths = FolderPaths(folder.resolve(), tmp_path / "data/set")
    for entry in ("in/1", "./in/1", "x/../in/1", folder / "in/1", tmp_path / "data/set/in/1", tmp_path / "direct/in/1"):
        assert paths.relative(entry) == "in/1", entry
    assert paths.relative("outside/mount/x") == "outside/mount/x"  # a link that the folder's owner made
    for entry in (
        "../../../b/0",
        "in/../../x",
        "/etc/passwd",
        tmp_path / "mount/settle/1",
        "..",
        "a\0b",
        "/",
        "/\ud83d",
    ):
        assert paths.relative(entry) is None, entry
