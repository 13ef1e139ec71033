"""Scans one tar shard made by others: its samples as rows of an index, and why the rest are none."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidlab.data.datasets.annotation import ReadEntry
from vidlab.data.names import RENAME, is_utf8, reason_of, shown
from vidlab.data.storage.clip_row import NO_SPLIT, SPLITS, ClipRow, check_row
from vidlab.data.storage.shards import open_member, read_member
from vidlab.data.storage.tar_headers import Damage, Member
from vidlab.data.storage.tar_shards import TarClip, clips_of, samples
from vidlab.data.tables.captions import caption_lines, captions_of, decoded
from vidlab.data.video import DecodeLimits, probe_closely
from vidlab.errors import CorruptClipError

# A caption or record longer than this is none.
MAX_TEXT_BYTES = 1 << 20
# Videos up to this size are read at once to be probed; of longer ones what the demuxer asks for.
PROBED_WHOLE = 1 << 26


@dataclass
class ShardContent:
    """The clips of one shard, and what was found besides.

    Args:
        rows: usable clips, in order; ``split`` is empty where the sample names none.
        rejected: damaged samples and places of the shard, and why; safe to print.
        left_out: samples, by what they are without, or have too much of.
        remarks: on usable clips, by key.
    """

    rows: list[ClipRow] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def count(self, reason: str, samples: int = 1) -> None:
        """Count samples that are left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + samples


def scan_shard(root: Path, shard: Path, limits: DecodeLimits | None = None) -> ShardContent:
    """Walk the headers of ``shard`` and probe its videos. Names are relative to ``root``.

    Whatever is wrong with a sample is its own failure, and what is wrong with the file is the shard's: nothing raises.
    """
    content = ShardContent()
    name = shard.relative_to(root).as_posix()
    if not is_utf8(name):
        content.rejected[shown(name)] = f"its name is not UTF-8: {RENAME}"
    elif not shard.is_file():
        content.rejected[shown(name)] = "this is no file, or a link that leads to none"
    else:
        try:
            _scan(root, name, content, limits)
        except Exception as error:  # of the shard, whatever it is: named and counted
            content.rejected[shown(name)] = reason_of(error)
    return content


def _scan(root: Path, name: str, content: ShardContent, limits: DecodeLimits | None) -> None:
    keys: set[str] = set()
    for sample in samples(root / name):
        if isinstance(sample, Damage):
            content.rejected[shown(f"{name}, byte {sample.offset}")] = sample.reason
            continue
        clips, others = clips_of(sample)
        if others:
            content.count("with_further_videos")
        if not clips:
            content.count("without_video")
        for clip in clips:
            own = clip.key if is_utf8(clip.key) else shown(clip.key)
            key = f"{name[:-4] if name.lower().endswith('.tar') else name}/{own}"
            if key in keys:
                content.rejected[shown(f"{name}, byte {clip.video.offset}")] = f"a second sample has the key {own!r}"
                continue
            try:
                found = _read(root, name, key, clip, limits)
            except Exception as error:  # of the sample, whatever it is: named and counted
                content.rejected[shown(key)] = reason_of(error, key)
                continue
            if found is None:
                content.count("without_caption")
            else:
                keys.add(key)
                content.rows.append(found.row)
                content.remarks += [(key, found.remarks)] if found.remarks else []


def _read(root: Path, shard: str, key: str, clip: TarClip, limits: DecodeLimits | None) -> ReadEntry | None:
    """The row of a clip, and remarks; None without a caption."""
    video = clip.video
    if video.fault is not None:
        raise CorruptClipError(video.fault)
    record = _record(root, shard, clip)
    captions = _captions(root, shard, clip, record)
    if not captions:
        return None
    probed = probe_closely(open_member(root, shard, video.offset, video.size, whole=PROBED_WHOLE), key, limits)
    split, source, scores = record.get("split"), record.get("source"), record.get("scores")
    row = ClipRow(
        key=key,
        shard=shard,
        offset=video.offset,
        size=video.size,
        captions=tuple(captions),
        split=split if split in SPLITS else "",
        source=source if isinstance(source, str) and source else key,
        factors=None,
        scores={str(k): float(v) for k, v in scores.items() if _is_number(v)} if isinstance(scores, dict) else {},
        **asdict(probed.info),
    )
    check_row(row)
    odd = () if split in (None, "", *SPLITS) else (f"of a split {NO_SPLIT}, and by name in train or val",)
    return ReadEntry(row, probed.remarks + odd)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _record(root: Path, shard: str, clip: TarClip) -> dict[str, Any]:
    text = _text(root, shard, clip.texts.get("json"), "its .json")
    try:
        record = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CorruptClipError(f"its .json is not JSON ({error})") from None
    return record if isinstance(record, dict) else {}


def _captions(root: Path, shard: str, clip: TarClip, record: Mapping[str, Any]) -> list[str]:
    """Captions without superfluous white space, from where they are first found."""
    listed = record.get("captions")
    return (
        (captions_of(listed) if isinstance(listed, list) else [])
        or list(dict.fromkeys(caption_lines(_text(root, shard, clip.texts.get("txt"), "its .txt"))))
        or captions_of(record.get("caption"))
        or captions_of(record.get("text"))
        or captions_of(listed)
    )


def _text(root: Path, shard: str, member: Member | None, what: str) -> str:
    if member is None:
        return ""
    if member.fault is not None or member.size > MAX_TEXT_BYTES:
        raise CorruptClipError(f"{what}: {member.fault or f'{member.size} bytes are too many for a text'}")
    return decoded(read_member(root, shard, member.offset, member.size), what)
