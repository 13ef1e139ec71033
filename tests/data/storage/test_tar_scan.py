"""What is in one shard made by others: each clip, or why it is none."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np

from vidlab.data.storage.shards import read_member
from vidlab.data.storage.tar_headers import Member, read_headers
from vidlab.data.storage.tar_scan import ShardContent, scan_shard
from vidlab.data.video import encode

CLIPS = [encode(np.full((9, 16, 24, 3), 20 * level, np.uint8), fps=8) for level in range(6)]


def scanned(folder: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **settings) -> ShardContent:
    """What one shard of these members holds; a list may name a member twice."""
    path = folder / "s.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return scan_shard(folder, path)


def captions(content: ShardContent) -> dict[str, tuple[str, ...]]:
    return {row.key.removeprefix("s/"): row.captions for row in content.rows}


ODD_RECORDS = {
    b"[" * 100_000: "not JSON",
    b'{"caption": "half \\ud83d of a pair"}': "not valid Unicode",
    b'{"captions": ["whole", "half \\udfff"]}': "not valid Unicode",
    b'{"source": "\\ud800", "caption": "a"}': "source is not valid Unicode",
    b'{"scores": {"\\ud800": 1}, "caption": "a"}': "score's name is not valid Unicode",
    b'{"scores": {"motion": 1' + b"0" * 400 + b'}, "caption": "a"}': "OverflowError: int too large",
    b'{"frames": 1' + b"0" * 5000 + b', "caption": "a"}': "not JSON",
    b'{"caption": {"en": "a"}}': "of type dict",
    b'{"captions": [true]}': "of type bool",
    b'{"caption": "' + b"a" * (1 << 20) + b'"}': "too many for a text",
    b'{"caption": "caf\xe9"}': "its .json is not UTF-8",
    b'\xff\xfe{\0"\0': "its .json is not UTF-8",
}


def test_an_odd_record_is_the_failure_of_its_clip_alone(tmp_path):
    members: dict[str, bytes] = {}
    for number, record in enumerate(ODD_RECORDS):
        members |= {f"{number:02d}.mp4": CLIPS[0], f"{number:02d}.json": record}
    content = scanned(
        tmp_path, members | {"99.mp4": CLIPS[1], "99.txt": b"caf\xe9", "zz.mp4": CLIPS[1], "zz.txt": b"z"}
    )
    assert captions(content) == {"zz": ("z",)}
    for number, said in enumerate([*ODD_RECORDS.values()]):
        assert said in content.rejected[f"s/{number:02d}"]
    assert "its .txt is not UTF-8" in content.rejected["s/99"]


def test_wrong_types_beside_a_caption_are_passed_over_and_no_caption_is_counted(tmp_path):
    odd = b'{"split": ["x"], "source": 3, "scores": [1], "captions": 5, "caption": "c"}'
    content = scanned(
        tmp_path,
        {"a.mp4": CLIPS[0], "a.json": odd, "b.mp4": CLIPS[0], "b.json": b"[1]", "c.mp4": CLIPS[0], "c.txt": b" \n\n",
         "d.mp4": CLIPS[0], "d.json": b'{"captions": [null, ""], "caption": NaN, "text": ""}',
         "e.mp4": CLIPS[0], "e.json": b'{"captions": "alone"}', "f.mp4": CLIPS[0], "f.json": b'{"text": ["t", "t"]}'},
    )  # fmt: skip
    assert captions(content) == {"a": ("c",), "e": ("alone",), "f": ("t",)}
    assert content.left_out == {"without_caption": 3} and content.rejected == {}
    assert (content.rows[0].split, content.rows[0].source, content.rows[0].scores) == ("", "s/a", {})


def test_lines_of_a_text_end_where_its_writer_ended_them(tmp_path):
    content = scanned(tmp_path, {"a.mp4": CLIPS[0], "a.txt": "one\u2028 still\x0cone\x85 \r\ntwo\r".encode()})
    assert captions(content) == {"a": ("one still one", "two")}


def test_names_that_are_not_utf8_are_read_and_spelled_out(tmp_path):
    """Written by zip on Windows, for example. The clip is read under the key, in training too."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        content = scanned(tmp_path, {"caf\udce9.mp4": CLIPS[0], "caf\udce9.txt": b"a"}, format=form)
        (row,) = content.rows
        assert row.key == r"s/caf\xe9"
        assert read_member(tmp_path, row.shard, row.offset, row.size, row.key) == CLIPS[0]
    shard = tmp_path / os.fsdecode(b"caf\xe9.tar")
    (tmp_path / "s.tar").rename(shard)
    content = scan_shard(tmp_path, shard)
    assert not content.rows and "its name is not UTF-8: rename it" in content.rejected[r"caf\xe9.tar"]
    assert scan_shard(tmp_path, tmp_path / "gone\x1b.tar").rejected == {
        r"gone\x1b.tar": "this is no file, or a link that leads to none"
    }


def test_dots_in_names(tmp_path):
    """WebDataset ends the key at the first dot, so that these are samples of several videos."""
    content = scanned(
        tmp_path,
        {"t 2.0.mp4": CLIPS[0], "t 2.0.txt": b"zero", "t 2.1.mp4": CLIPS[1], "t 2.1.json": b'{"caption": "one"}',
         "t 2.mp4": CLIPS[2], "t 2.txt": b"two",
         "u.left.mp4": CLIPS[3], "u.right.mp4": CLIPS[4], "u.txt": b"left",
         "v.video.mp4": CLIPS[5], "v.video.json": b"{}", "v.txt": b"plain"},
    )  # fmt: skip
    assert captions(content) == {
        "t 2.0": ("zero",),
        "t 2.1": ("one",),
        "t 2": ("two",),
        "u": ("left",),
        "v": ("plain",),
    }
    bytes_of = {row.key: read_member(tmp_path, "s.tar", row.offset, row.size, row.key) for row in content.rows}
    assert [bytes_of[f"s/{key}"] for key in ("t 2.0", "t 2.1", "t 2", "u", "v")] == [CLIPS[n] for n in (0, 1, 2, 3, 5)]
    assert content.left_out == {"with_further_videos": 1} and content.rejected == {}


def test_files_of_a_sample_need_not_stand_side_by_side(tmp_path):
    members = [(f"{n}.mp4", CLIPS[n]) for n in range(3)] + [(f"{n}.txt", b"%d" % n) for n in range(3)]
    content = scanned(tmp_path, [*members, ("1.mp4", CLIPS[4]), ("1.txt", b"again")])
    assert captions(content) == {"0": ("0",), "1": ("1",), "2": ("2",)}
    assert list(content.rejected.values()) == ["a second sample has the key '1'"]


def test_accents_of_one_name_may_be_written_in_two_ways(tmp_path):
    """macOS writes e and a combining accent, others one character. Two whole samples stay two."""
    one, two = "caf\u00e9", "cafe\u0301"
    content = scanned(tmp_path, {f"{one}.mp4": CLIPS[0], f"{two}.txt": b"a"})
    assert captions(content) == {one: ("a",)}
    both = {f"{name}.{kind}": data for name in (one, two) for kind, data in (("mp4", CLIPS[0]), ("txt", b"a"))}
    assert set(captions(scanned(tmp_path, both))) == {one, two}


def test_what_macos_adds_is_passed_over(tmp_path):
    added = {"./._a.mp4": b"\0\5\26\7", "._a.txt": b"\0\5\26\7", "__MACOSX/._a.mp4": b"\0\5\26\7"}
    content = scanned(tmp_path, added | {"./a.mp4": CLIPS[0], "./a.txt": b"a"})
    assert captions(content) == {"./a": ("a",)} and not content.rejected and not content.left_out


def test_a_shard_that_ends_within_a_member_of_no_sample_is_counted(tmp_path):
    scanned(tmp_path, {"a.mp4": CLIPS[0], "a.txt": b"a", "README": bytes(4096)})
    path = tmp_path / "s.tar"
    readme = next(entry for entry in read_headers(path) if isinstance(entry, Member) and entry.name == "README")
    path.write_bytes(path.read_bytes()[: readme.offset + 1000])
    content = scan_shard(tmp_path, path)
    assert captions(content) == {"a": ("a",)}
    assert list(content.rejected.values()) == ["cut off: the shard ends before it does"]
