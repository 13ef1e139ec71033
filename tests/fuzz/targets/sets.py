"""Sets of clips: folders, tar shards, indices; and the folders that an evaluation scores."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ..edits import Edit, in_json, in_text, structured
from ..structure import tar_headers
from ..target import Found, Subject, Target, digest
from .media import small_video

CLIPS = 4


def indexed(source: Any) -> Found:
    """Clips of a ``ClipSource``, with what its index says of those it left out."""
    from vidlab.data.storage.index import ClipIndex

    return clips_of(ClipIndex.open(source.prepare()))


def clips_of(index: Any) -> Found:
    """Every clip of an index, its bytes with it, and counts of what was left out."""
    from vidlab.data.storage.shards import read_member
    from vidlab.errors import CorruptClipError

    items, said = {}, _left_out(index.metadata)
    for position in range(len(index)):
        row = index.row(position)
        try:
            content = read_member(index.root, row.shard, row.offset, row.size, row.key)
        except CorruptClipError as error:
            said.append(str(error))
            continue
        shown = (row.captions, row.frames, row.height, row.width, row.fps, row.source, sorted(row.scores.items()))
        items[row.key] = digest(shown, content)
    for name in ("frames", "height", "width", "fps"):
        index.numbers(name)
    index.shard_numbers()
    return Found(items, said)


def _left_out(metadata: Mapping[str, Any]) -> list[str]:
    said = []
    for name, value in metadata.items() if isinstance(metadata, Mapping) else ():
        if isinstance(value, Mapping):
            said += [f"{key}: {reason}" for key, reason in value.items()]
        elif isinstance(value, int) and value and name not in ("videos", "shards", "named"):
            said.append(f"{name}: {value}")
    return said


# -- folders of videos -------------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> Sequence[Subject]:
    subjects = []
    for number in range(CLIPS):
        below = folder / "deep" if number % 2 else folder
        below.mkdir(exist_ok=True)
        name = (below / f"clip{number}").relative_to(folder).as_posix()
        (folder / f"{name}.mp4").write_bytes(small_video(number))
        (folder / f"{name}.txt").write_text(f"a red clip {number}\nanother caption é\n")
        own = frozenset([f"{name}.mp4"])
        subjects.append(Subject(f"{name}.mp4", "mp4", own, nodes=True))
        subjects.append(Subject(f"{name}.txt", "text", own, nodes=True))
    return subjects


def read_folder(folder: Path) -> Found:
    from vidlab.data.datasets.folder import FolderSource

    return indexed(FolderSource(str(folder)))


# -- tar shards --------------------------------------------------------------------------------------------------------


def write_tar(path: Path, kind: int, members: Sequence[tuple[str, bytes]], **pax: str) -> None:
    with tarfile.open(path, "w", format=kind, pax_headers=pax) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(names: Sequence[str]) -> list[tuple[str, bytes]]:
    members = []
    for number, name in enumerate(names):
        record = {
            "caption": f"a clip {number}",
            "split": "train",
            "source": f"tape {number}",
            "scores": {"motion": 0.5},
        }
        members.append((f"{name}.mp4", small_video(number)))
        members.append((f"{name}.json", json.dumps(record).encode()))
        if number % 2:
            members.append((f"{name}.txt", f"the caption {number}\n".encode()))
    return members


def within(name: str, edit: Edit) -> Edit:
    """Damage to the content of one member of a tar, which stays sound."""

    def change(random: Random, data: bytes) -> tuple[bytes, str]:
        members, said = [], "nothing"
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if member.name == name and content:
                    content, said = edit(random, content)
                members.append((member.name, content))
            kind = tar.format if tar.format is not None else tarfile.DEFAULT_FORMAT
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=kind) as tar:
            for member_name, content in members:
                entry = tarfile.TarInfo(member_name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue(), f"in {name}: {said}"

    return change


def fields(random: Random, data: bytes) -> tuple[bytes, str]:
    """A field of a tar header by something hostile."""
    heads = tar_headers(data)
    if not heads:
        return data[:-1], "cut"
    head = random.choice(heads)
    place, size = random.choice(((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155)))
    new = random.choice((b"\xff" * size, bytes(size), b"-" * size, b"7" * size, b"\x80" + b"\xff" * (size - 1),
                         b"x" * size, b"../../../etc/x".ljust(size, b"\0"), b"9" * size,
                         bytes([random.randrange(256)]) * size,
                         b"\xe9.mp4".ljust(size, b"\0"), b"-1".ljust(size, b"\0"), b" " * size))[:size]  # fmt: skip
    return data[: head + place] + new + data[head + place + size :], f"field {place} of header {head}: {new[:12]!r}"


def tar_target(name: str, kind: int, prefix: str = "", **pax: str) -> Target:
    names = [f"{prefix}{number:03d}" for number in range(CLIPS)]

    def make(folder: Path) -> Sequence[Subject]:
        write_tar(folder / "s.tar", kind, samples(names), **pax)
        whole = (*structured("tar", keep_parts=True), *(fields,) * 6)
        subjects = [Subject("s.tar", whole)] * CLIPS
        for sample in names:
            own = frozenset([f"s/{sample}"])
            for suffix, edits in (("mp4", structured("mp4")), ("json", (in_json,) * 3 + structured("text"))):
                inner = tuple(within(f"{sample}.{suffix}", edit) for edit in edits)
                subjects.append(Subject("s.tar", inner, own))
        inner = tuple(within(f"{names[1]}.txt", edit) for edit in (*structured("text"), in_text, in_text))
        return [*subjects, Subject("s.tar", inner, frozenset([f"s/{names[1]}"]))]

    return Target(f"shards.{name}", make, read_shards)


def read_shards(folder: Path) -> Found:
    from vidlab.data.datasets.webdataset import TarShards

    return indexed(TarShards(str(folder)))


# -- the index of a data set, and the file of its rows -----------------------------------------------------------------


def make_index(file: str, edits: str) -> Callable[[Path], Sequence[Subject]]:
    def make(folder: Path) -> Sequence[Subject]:
        from vidlab.data.storage.shards import ShardWriter
        from vidlab.data.video import VideoInfo

        with ShardWriter(folder, clips_per_shard=3) as writer:
            for number in range(CLIPS * 2):
                info = VideoInfo(4, 16, 16, 8.0, 0.5)
                captions = [f"a red clip {number}", "another"]
                writer.add(f"clip_{number}", small_video(number), info, captions, scores={"motion": 1.5})
        return [Subject(path.name, edits) for path in sorted(folder.glob(file))]

    return make


def read_index(folder: Path) -> Found:
    from vidlab.data.storage.index import ClipIndex

    return clips_of(ClipIndex.open(folder))


# -- videos to be scored -----------------------------------------------------------------------------------------------


def read_scored(folder: Path) -> Found:
    from vidlab.errors import CorruptClipError
    from vidlab.lab.evaluation.clips import clips_of_folder

    items, said = {}, []
    for clip in clips_of_folder(folder, "videos"):
        try:
            items[clip.path.relative_to(folder).as_posix()] = digest(clip.key, clip.caption, clip.frames().tobytes())
        except CorruptClipError as error:
            said.append(str(error))
    return Found(items, said)


def make_record(folder: Path) -> Sequence[Subject]:
    from vidlab.lab.evaluation.clips import ScoredClip, write_record

    for number in range(CLIPS):
        (folder / f"{number:03d}.mp4").write_bytes(small_video(number))
    write_record(folder, [ScoredClip(f"k{n}", f"a clip {n}", folder / f"{n:03d}.mp4") for n in range(CLIPS)])
    return [Subject("clips.json", "json", countable=False)]


def read_reference(folder: Path) -> Found:
    from vidlab.errors import CorruptClipError
    from vidlab.lab.evaluation.clips import real_clips

    items, said = {}, []
    for clip in real_clips(folder, 2, None):
        try:
            items[clip.key] = digest(clip.cut(2, 16, 16).numpy().tobytes())
        except CorruptClipError as error:
            said.append(str(error))
    return Found(items, said)


def make_videos(folder: Path) -> Sequence[Subject]:
    return make_folder(folder)


TARGETS = (
    Target("folder", make_folder, read_folder),
    tar_target("ustar", tarfile.USTAR_FORMAT),
    tar_target("gnu_long_names", tarfile.GNU_FORMAT, "a" * 120),
    tar_target("pax", tarfile.PAX_FORMAT, "é" * 60, comment="made by hand"),
    Target("index.parquet", make_index("index.parquet", "footed"), read_index),
    Target("index.rows", make_index("index-*.rows", "footed"), read_index, exact=True),
    Target("index.shards", make_index("*.tar", "tar"), read_index),
    Target("evaluate.videos", make_videos, read_scored),
    Target("evaluate.reference", make_videos, read_reference),
    Target("evaluate.record", make_record, read_scored),
)
