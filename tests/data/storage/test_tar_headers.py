"""Headers that lie: reading always goes forward, and what cannot be read is said."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from vidlab.data.storage.tar_headers import BLOCK, CUT_OFF, NOT_CLOSED, Damage, Member, read_headers

GNU, PAX = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """A header in GNU's form and the content, padded; the size may lie."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(GNU) + content + bytes(-len(content) % BLOCK)


def pax(record: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header of one record."""
    length = next(n for n in range(len(record) + 3, len(record) + 9) if len(f"{n} ") + len(record) + 1 == n)
    return member("pax", b"%d %s\n" % (length, record), kind)


END = bytes(2 * BLOCK)
FIRST, LAST = member("a.txt", b"one"), member("z.txt", b"last")


def found(path: Path, content: bytes) -> list[str]:
    """The names of whole members, and what is said of the rest."""
    path.write_bytes(content)
    return [
        f"{entry.offset}: {entry.reason}" if isinstance(entry, Damage) else entry.fault or entry.name
        for entry in read_headers(path)
    ]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "s.tar"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, GNU, PAX])
def test_members_are_those_that_tarfile_finds(path, form):
    """Names of every length, of any script and no text at all, folders, and content of every length."""
    names = [
        *("a.txt", "é/ü.mp4", "d" * 90 + "/" + "n" * 60 + ".mp4", "x" * 99, "y" * 100, "empty.json"),
        *(
            ("long/" + "z" * 200 + ".txt", "caf\udce9.mp4", "日本語" * 40 + ".txt")
            if form != tarfile.USTAR_FORMAT
            else ()
        ),
    ]
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty.json" else 511 + number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    with tarfile.open(path) as tar:
        expected = [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    assert list(read_headers(path)) == expected and [one.name for one in expected] == names


NEGATIVE = {"binary": -513, "least": -(2**80)}


@pytest.mark.parametrize("size", NEGATIVE.values(), ids=NEGATIVE)
def test_a_negative_size_is_damage_and_the_rest_is_read(path, size):
    said = found(path, FIRST + member("b.mp4", b"", size=size) + LAST + END)
    assert said == ["a.txt", f"{2 * BLOCK}: a header says {size} bytes", "z.txt"]


def test_a_size_beyond_the_file_is_a_lie_where_more_headers_follow(path):
    """Of 8 EiB and more, too; without more headers the shard was cut off."""
    for size in (10**6, 2**63, 2**80):
        lying = member("b.mp4", b"video", size=size)
        rest = len(lying) + len(LAST) + len(END) - BLOCK
        said = found(path, FIRST + lying + LAST + END)
        assert said == ["a.txt", f"its header says {size} bytes, and the shard has {rest} after it", "z.txt"]
        assert found(path, FIRST + lying) == ["a.txt", CUT_OFF]


def test_a_tar_cut_inside_the_padding_of_a_member_is_not_complete(path):
    whole = FIRST + member("b.txt", b"12345")
    for missing in (1, 100, BLOCK - 5):
        cut = whole[: len(whole) - missing]
        assert found(path, cut) == ["a.txt", "b.txt", f"{len(cut)}: {NOT_CLOSED}"]
    assert found(path, whole[:-BLOCK]) == ["a.txt", CUT_OFF]
    assert found(path, whole) == ["a.txt", "b.txt", f"{len(whole)}: {NOT_CLOSED}"]
    assert found(path, whole + bytes(BLOCK)) == ["a.txt", "b.txt"]  # one block of zeros closes a tar as well


RECORDS = [b"size=-1", b"size=" + b"9" * 5000, b"size=1e3", b"size= 5", b"size=", b"size=\xb2", b"=x", b"size"]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_an_extended_header_that_lies_is_damage(path, record):
    said = found(path, FIRST + pax(record) + member("b.txt", b"two") + LAST + END)
    assert said == ["a.txt", f"{len(FIRST)}: an extended header is damaged", "b.txt", "z.txt"]


def test_extended_headers_give_names_and_sizes(path):
    long_name = member("././@LongLink", b"folder/long.mp4\0", tarfile.GNUTYPE_LONGNAME)
    for start in (long_name, pax(b"path=folder/long.mp4"), pax(b"path=folder/long.mp4", tarfile.SOLARIS_XHDTYPE)):
        assert found(path, start + member("cut", b"x") + LAST + END) == ["folder/long.mp4", "z.txt"]
    # the first of several is right, as for tarfile, and one of all members names none
    assert found(path, long_name + pax(b"path=other") + member("c") + END) == ["folder/long.mp4"]
    assert found(path, pax(b"path=all.mp4", tarfile.XGLTYPE) + FIRST + END) == ["a.txt"]
    path.write_bytes(pax(b"size=3") + member("a", b"abc", size=0) + LAST + END)
    assert [entry.size for entry in read_headers(path) if isinstance(entry, Member)] == [3, 4]


def test_extended_headers_without_end_are_read_at_once(path):
    """Each says that the next one is extended: 1500 of them, where Python calls itself 1000 times at most."""
    chain = member("l", b"n\0", tarfile.GNUTYPE_LONGNAME) * 1500
    assert found(path, chain + FIRST + LAST + END) == ["n", "z.txt"]
    assert found(path, chain + END) == ["0: an extended header with no header after it"]
    assert found(path, chain) == [f"{len(chain)}: {NOT_CLOSED}"]
    # a name that is said to be longer than the shard, or than names are
    assert found(path, member("l", b"n", tarfile.GNUTYPE_LONGNAME, 2**40) + LAST + END) == [f"0: {NOT_CLOSED}", "z.txt"]
    long = member("l", bytes(2**20 + 1), tarfile.GNUTYPE_LONGNAME)
    assert found(path, long + LAST + END) == ["0: an extended header of 1048577 bytes", "z.txt"]


def test_a_kind_that_no_tar_has_is_named(path):
    content = FIRST + member("b.json", b"{}", kind=b"9") + LAST + END
    assert found(path, content) == ["a.txt", "its header is of a kind that no tar has (9)", "z.txt"]


def test_links_and_sparse_members_are_named_with_the_remedy(path):
    def link(name: str, kind: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "a\x1b.mp4"
        return info.tobuf(GNU)

    # two blocks more of the map, then the content that is there
    sparse = bytearray(tarfile.TarInfo("s.mp4").tobuf(GNU))
    sparse[156:157], sparse[124:136], sparse[482] = tarfile.GNUTYPE_SPARSE, b"00000001000\0", 1
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    maps = bytes(504) + b"\1" + bytes(7) + bytes(BLOCK)
    posix = pax(b"GNU.sparse.name=t.mp4") + member("GNUSparseFile.0/t.mp4", b"map and content")
    links = link("b.mp4", tarfile.LNKTYPE) + link("c.mp4", tarfile.SYMTYPE)
    said = found(path, links + bytes(sparse) + maps + bytes([1]) * BLOCK + posix + LAST + END)
    assert said[0] == r"it is a hard link to a\x1b.mp4: pack the shard with tar --hard-dereference"
    assert said[1] == r"it is a symbolic link to a\x1b.mp4: pack the shard with tar --dereference (-h)"
    assert (
        said[2:4]
        == ["it is stored as a sparse file, without its holes: pack the shard without tar's --sparse (-S)"] * 2
    )
    assert said[4:] == ["z.txt"]


def test_zeros_in_the_middle_do_not_end_a_shard(path):
    """A download with a hole, or two shards joined by cat: named, and the rest is read."""
    said = found(path, FIRST + END + bytes(3 * BLOCK) + LAST + END)
    zeros = f"{len(FIRST)}: zeros, and more of the shard after them, at byte {len(FIRST) + 5 * BLOCK}"
    assert said[0] == "a.txt" and said[1].startswith(zeros) and said[2] == "z.txt"
    assert found(path, FIRST + bytes(20 * BLOCK)) == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed by gzip.*gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed by zstd.*unzstd"),
        (b"PK\x03\x04" + bytes(600), "a zip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!doctype html>" + b" " * 600, "web page"),
        (b"no tar", "without tar's closing blocks"),
        (b"no tar" * 200, "a header is damaged"),
    ],
)
def test_files_that_are_no_tar_are_named(path, content, said):
    ((damage),) = found(path, content)
    assert damage.startswith(("0: ", "6: "))
    assert re.search(said, damage)
