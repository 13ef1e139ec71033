"""Groups the members of a tar file into WebDataset samples, by headers alone.

A sample is the members that share the part of their name before the first dot of the file name, as WebDataset reads
them: ``a/000.mp4``, ``a/000.txt`` and ``a/000.json`` are the sample ``a/000``. Unlike for a reader of streams they need
not stand side by side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vidlab.data.names import composed
from vidlab.data.storage.tar_headers import Damage, Member, read_headers

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov")
TEXT_SUFFIXES = ("txt", "json")


@dataclass
class TarSample:
    """The members of one sample, by lower-case suffix."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True)
class TarClip:
    """A video of a sample, and the members that describe it.

    Args:
        key: unique in the shard unless the shard has a sample twice.
        video: its member.
        texts: members by the last part of their suffix, ``txt`` or ``json``.
    """

    key: str
    video: Member
    texts: dict[str, Member]


def samples(path: Path) -> Iterator[TarSample | Damage]:
    """Damage, then samples in the order of their first members.

    Members without a suffix and those that WebDataset keeps for itself (``__x__``) belong to none. A name that comes
    again begins another sample with the key of the first. Accents may be written as one character or as two.

    Raises:
        OSError: the file cannot be read.
    """
    found: list[TarSample] = []
    latest: dict[str, TarSample] = {}
    for member in read_headers(path):
        if isinstance(member, Damage):
            yield member
            continue
        name = split_name(member.name)
        if member.cut_off and (name is None or not (_is_video(name[1]) or name[1] in TEXT_SUFFIXES)):
            # of no sample, or of a part of it that is not read, so that nothing else would tell
            yield Damage(member.offset, member.fault or "")
        if name is None:
            continue
        key, suffix = name
        sample = latest.get(key) or latest.get(composed(key))
        if sample is None or suffix in sample.members:
            sample = TarSample(key)
            found.append(sample)
            latest.setdefault(composed(key), sample)
        latest[key] = sample
        sample.members[suffix] = member
    yield from found


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case suffix of a member; None when it belongs to no sample."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    top = name.partition("/")[0]
    if not stem or not dot or (len(top) >= 4 and top.startswith("__") and top.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def clips_of(sample: TarSample) -> tuple[list[TarClip], int]:
    """The videos of a sample, and how many more it has that no text describes.

    The plain ``.txt`` and ``.json`` describe the video named like them, else the first without a text of its own, else
    the first. Another video whose name has further dots, ``shot.1.mp4``, is a clip of its own where a text has the
    same name, ``shot.1.txt``; its key is then ``shot.1``.
    """
    videos = [(suffix.rpartition(".")[0], member) for suffix, member in sample.members.items() if _is_video(suffix)]
    own = {inner: _texts(sample, f"{inner}.") for inner, _ in videos if inner}
    plain = _texts(sample, "")
    undescribed = [inner for inner, _ in videos if not own.get(inner)]
    described = min(undescribed, key=bool, default=videos[0][0] if plain and videos else None)
    clips: list[TarClip] = []
    for inner, member in videos:
        if inner == described and not any(clip.key == sample.key for clip in clips):
            clips.append(TarClip(sample.key, member, plain))
        elif own.get(inner):
            clips.append(TarClip(f"{sample.key}.{inner}", member, own[inner]))
    return clips, len(videos) - len(clips)


def _is_video(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in VIDEO_SUFFIXES


def _texts(sample: TarSample, beginning: str) -> dict[str, Member]:
    return {kind: found for kind in TEXT_SUFFIXES if (found := sample.members.get(beginning + kind)) is not None}
