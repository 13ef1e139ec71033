"""Encoded clips."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..target import Found, Subject, Target, digest

CLIPS, SHARD = 6, 4


def make_cache(folder: Path, edits: str = "tar.unforged") -> Sequence[Subject]:
    from vidlab.curation import cache_writer as cw
    from vidlab.data.storage.latent_cache import FORMAT, CacheHeader

    torch.manual_seed(0)
    header = CacheHeader({"format": FORMAT, "seed": 0}, 0, CLIPS, SHARD)
    cw.open_folder(folder, header)
    for shard in range(header.shards):
        clips = []
        for number in range(shard * SHARD, shard * SHARD + header.clips_in(shard)):
            parts = {"latent": torch.randn(2, 4, 2, 4, 4).bfloat16(), "tokens": torch.randn(3, 8).bfloat16()}
            parts |= {"mask": torch.ones(3, dtype=torch.bool), "pooled": torch.randn(8).bfloat16()}
            record = cw.CacheRecord(f"clip_{number}", 0, number, 5, 32, 32, 1)
            clips.append((number, cw.EncodedClip(record, parts)))
        cw.write_shard(folder, shard, clips)
    cw.write_cache_index(folder, header)
    shards = [Subject(path.name, one) for path in sorted(folder.glob("*.tar")) for one in (edits, "bytes")]
    return [*shards, Subject("index.parquet", "footed"), Subject("cache.json", "json", countable=False)]


def read_cache(folder: Path) -> Found:
    """Every clip, as training reads them."""
    from vidlab.data.storage.latent_cache import ClipCache
    from vidlab.errors import CorruptClipError

    cache, items, said = ClipCache(folder), {}, []
    for position in range(CLIPS):
        if position >= cache.header.clips:
            break
        try:
            clip = cache.read(position, 0)
        except CorruptClipError as error:
            said.append(str(error))
            continue
        arrays = [value.view(torch.uint8).numpy().tobytes() for _, value in sorted((clip.text or {}).items())]
        shown = (clip.size, clip.stride, clip.crop, clip.caption, tuple(clip.moments.shape))
        items[str(position)] = digest(shown, clip.moments.view(torch.uint8).numpy().tobytes(), *arrays)
    return Found(items, said)


TARGETS = (
    Target("cache", make_cache, read_cache, exact=True),
    Target("cache.forged", lambda folder: make_cache(folder, "tar"), read_cache),
)
