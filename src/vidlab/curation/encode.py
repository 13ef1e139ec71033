"""Clips through the frozen encoders: decode, encode, and write one shard."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16
from torch import Tensor

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.streaming import posterior_in_chunks
from vidlab.curation.cache_writer import CacheRecord, EncodedClip, write_shard
from vidlab.data.clip_reader import ClipReader, LoadedClip
from vidlab.data.clip_transform import ClipTransform
from vidlab.data.names import reason_of
from vidlab.data.samplers.bucketed import TrainingShapes
from vidlab.data.samplers.plan import ClipRef
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.latent_cache import CacheHeader
from vidlab.data.video import to_pixels
from vidlab.errors import CorruptClipError
from vidlab.tensors import is_finite
from vidlab.text.base import TextEncoder


@dataclass(frozen=True)
class Encoders:
    """The frozen networks.

    Args:
        autoencoder: pixels to latents.
        text: captions to features; None for an encoder that is learned with the model.
        device: where they compute.
        bf16: whether the autoencoder computes under bfloat16 autocast, as it does in training with bf16-mixed.
        frames_at_once: frames of a clip that pass the autoencoder at a time; None is all.
    """

    autoencoder: Autoencoder
    text: TextEncoder | None
    device: torch.device
    bf16: bool = False
    frames_at_once: int | None = None

    @torch.no_grad()
    def latents(self, clips: Sequence[LoadedClip]) -> BFloat16[Tensor, "M B C t h w"]:
        """Mean and, where there is one, log-variance of clips of one size."""
        pixels = torch.stack([to_pixels(clip.content) for clip in clips if isinstance(clip.content, np.ndarray)])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            posterior = posterior_in_chunks(self.autoencoder, pixels, self.frames_at_once, self.device)
        moments = [posterior.mean] + ([] if posterior.log_variance is None else [posterior.log_variance])
        return torch.stack([moment.to(torch.bfloat16) for moment in moments]).cpu()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Tokens (S, D), mask (S,) and pooled (D,) of each caption, S being its own length; {} without an encoder."""
        if self.text is None:
            return [{} for _ in captions]
        found, texts = self.text(captions).to("cpu"), []
        for tokens, mask, pooled in zip(found.tokens, found.mask, found.pooled, strict=True):
            length = int(mask.nonzero().max()) + 1
            parts = {"tokens": tokens[:length].to(torch.bfloat16), "mask": mask[:length]}
            texts.append(parts | {"pooled": pooled.to(torch.bfloat16)})
        return texts

    def encode(self, clips: Sequence[LoadedClip]) -> list[dict[str, Tensor] | str]:
        """The arrays of clips of one size, by name; or why a clip has none: numbers that are not finite."""
        latents = self.latents(clips).unbind(1)
        texts = self.texts([clip.row.captions[clip.caption] for clip in clips])
        return [self._finite({"latent": latent, **text}) for latent, text in zip(latents, texts, strict=True)]

    def _finite(self, parts: dict[str, Tensor]) -> dict[str, Tensor] | str:
        for name, part in parts.items():
            if not is_finite(part):
                encoder = self.autoencoder if name == "latent" else self.text
                return f"{type(encoder).__name__} gives {'latents' if name == 'latent' else name} that are not finite"
        return parts


class ClipsToEncode:
    """Every view of every training clip, numbered ``view * clips + position``.

    Args:
        index: the training clips.
        view: how they are cut; its size is replaced by that of ``shapes``.
        shapes: the size of each clip.
        seed: of random views.
        views: per clip; 0 is the middle one alone, which counts as one.
    """

    def __init__(self, index: ClipIndex, view: ClipTransform, shapes: TrainingShapes, seed: int, views: int) -> None:
        self.index, self.view, self.shapes = index, view, shapes
        self.views = max(1, views)
        self._reader = ClipReader(index, view, seed)

    @cached_property
    def order(self) -> np.ndarray:
        """All numbers, clips of one size together, int64 (views * clips,)."""
        # lexsort is stable: clips of one size keep the order of the index
        clips = np.lexsort([*self.shapes.sizes.values(), ~self.shapes.kept])
        return np.concatenate([clips + view * len(self.index) for view in range(self.views)])

    def load(self, number: int) -> LoadedClip | CacheRecord:
        """A decoded clip, or the record of one that cannot be read."""
        view, position = divmod(int(number), len(self.index))
        try:
            row = self.index.row(position)
        except CorruptClipError as error:
            return CacheRecord(f"clip {position}", view, position, error=reason_of(error))
        if not self.shapes.kept[position]:
            return CacheRecord(row.key, view, position, error="in no bucket")
        frames, height, width, stride = (int(size[position]) for size in self.shapes.sizes.values())
        cut = ClipTransform(frames, height, width, stride, self.view.random, self.view.views)
        try:
            return self._reader.load(row, ClipRef(position, view), cut)
        except CorruptClipError as error:
            return CacheRecord(row.key, view, position, error=reason_of(error, row.key))


@dataclass(frozen=True)
class Bench:
    """All that a process needs to make shards.

    Args:
        clips: what to encode.
        encoders: with what.
        folder: where shards are written.
        header: of the cache.
        batch_size: clips encoded at once.
        readers: decoding threads.
    """

    clips: ClipsToEncode
    encoders: Encoders
    folder: Path
    header: CacheHeader
    batch_size: int
    readers: int

    def make_shard(self, number: int, advance: Callable[[int], None]) -> None:
        """Decode, encode and write one shard; ``advance`` is called with numbers of clips."""
        first = number * self.header.clips_per_shard
        numbers = self.clips.order[first : first + self.header.clips_per_shard].tolist()
        write_shard(self.folder, number, self._encoded(numbers, advance))

    def _encoded(self, numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[tuple[int, EncodedClip]]:
        with ThreadPoolExecutor(max(1, self.readers)) as pool:
            for batch in batches(self._loaded(pool, numbers), self.batch_size):
                readable = [clip for _, clip in batch if isinstance(clip, LoadedClip)]
                parts = iter(self.encoders.encode(readable) if readable else [])
                for name, clip in batch:
                    if isinstance(clip, CacheRecord):
                        yield name, EncodedClip(clip, {})
                        continue
                    record, part = record_of(clip, name // self.header.clips), next(parts)
                    if isinstance(part, str):
                        yield name, EncodedClip(CacheRecord(record.key, record.view, record.position, error=part), {})
                    else:
                        yield name, EncodedClip(record, part)
                advance(len(batch))

    def _loaded(
        self, pool: ThreadPoolExecutor, numbers: Sequence[int]
    ) -> Iterator[tuple[int, LoadedClip | CacheRecord]]:
        """Decoded clips in order, a few ahead of what is asked for."""
        rest = iter(numbers)
        pending = deque((number, pool.submit(self.clips.load, number)) for number in _take(rest, self._window))
        while pending:
            number, future = pending.popleft()
            yield number, future.result()
            pending.extend((number, pool.submit(self.clips.load, number)) for number in _take(rest, 1))

    @property
    def _window(self) -> int:
        return self.batch_size + max(1, self.readers)


def _take(numbers: Iterator[int], count: int) -> list[int]:
    return list(islice(numbers, count))


def record_of(clip: LoadedClip, view: int) -> CacheRecord:
    """What the index says of a clip that was decoded."""
    assert isinstance(clip.content, np.ndarray)
    frames, height, width, _ = clip.content.shape
    (top, left), position = clip.crop, clip.visit.position
    return CacheRecord(clip.row.key, view, position, frames, height, width, clip.stride, top, left, clip.caption)


def batches(
    clips: Iterable[tuple[int, LoadedClip | CacheRecord]], size: int
) -> Iterator[list[tuple[int, LoadedClip | CacheRecord]]]:
    """Neighbors of one shape, at most ``size`` together; unreadable ones go with any."""
    batch: list[tuple[int, LoadedClip | CacheRecord]] = []
    shape: tuple[int, ...] | None = None
    for number, clip in clips:
        own = clip.content.shape if isinstance(clip, LoadedClip) and isinstance(clip.content, np.ndarray) else None
        if batch and (len(batch) == size or (own is not None and shape is not None and own != shape)):
            yield batch
            batch, shape = [], None
        batch.append((number, clip))
        shape = own or shape
    if batch:
        yield batch
