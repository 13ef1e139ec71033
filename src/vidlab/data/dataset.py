"""Planned batches of clips: read the bytes, decode, sample frames, resize, crop, choose a caption.

One item is one whole batch, found by its number. Every choice is keyed by (seed, clip key, epoch, visit, purpose),
so a batch is the same whoever makes it: any worker, any rank, before or after a resume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, default_collate

from vidlab.clip import ClipBatch
from vidlab.data.clip_transform import BucketView, ClipTransform
from vidlab.data.names import reason_of, shown
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.clip_plan import ClipPlan
from vidlab.data.samplers.plan import ClipRef, Plan
from vidlab.data.storage.index import ClipIndex, ClipRow
from vidlab.data.storage.latent_cache import CachedClip, ClipCache, stack_encoded
from vidlab.data.storage.shards import open_member, read_member
from vidlab.data.video import DecodeLimits, read_frames
from vidlab.errors import CorruptClipError, UserError
from vidlab.randomness import moment, seed_of

# A clip at most this many times as long as the wanted stretch is decoded whole, so that it can be kept.
WHOLE_CLIP_RATIO = 2

# The filter of ``scale_to_cover``.
FILTER = "torch bicubic, antialiased, uint8"

# Replacements tried for one unreadable clip before the data set is called unusable.
MAX_REPLACEMENTS = 32


@dataclass(frozen=True)
class LoadFailure:
    """Why a batch could not be made; the main process raises it, free of a worker's traceback.

    Args:
        message: what happened.
        complete: whether the message says all; otherwise it goes on from the name of the data set.
    """

    message: str
    complete: bool = False


@dataclass(frozen=True)
class LoadedClip:
    """A clip as it is trained on.

    Args:
        content: its frames, uint8 (T, H, W, 3), or what they were encoded to.
        row: what the index says.
        visit: for which visit it was made.
        caption: place of the chosen caption.
        fps: frames per second of ``content``.
        crop: (top, left) in pixels after scaling.
        stride: source frames from one frame to the next.
    """

    content: np.ndarray | CachedClip
    row: ClipRow
    visit: ClipRef
    caption: int
    fps: float
    crop: tuple[int, int]
    stride: int


class ClipDataset(Dataset[ClipBatch | LoadFailure]):
    """A map from batch number to batch.

    A clip that cannot be read is replaced by another one, found by its key, and named in ``ClipBatch.skipped``; the
    other one then has other random numbers than in its own visits. Frames of short clips are kept, already scaled, as
    long as ``cache_mb`` lasts; nothing is evicted, because under a shuffled order every kept clip is as likely to be
    used next as any other.

    Args:
        index: the clips, at least one, each at least ``view.span`` frames long.
        batches: the visits of batch ``number``.
        view: how a clip becomes pixels.
        seed: the run's seed.
        cache_mb: megabytes (1e6 bytes) of decoded frames kept per worker; 0 keeps none.
        shapes: the view of batch ``number`` and what may replace a clip of it; None is ``view`` and all clips. A clip
            must have one shape in all its batches.
        cache: where encoded clips are read instead of decoding, made from this index and these views.
        limits: what decoding a clip may take; None is the default.
    """

    def __init__(
        self,
        index: ClipIndex,
        batches: Callable[[int], Sequence[ClipRef]],
        view: ClipTransform,
        seed: int,
        cache_mb: float | int = 0,
        shapes: "BucketShapes | None" = None,
        cache: ClipCache | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.index = index
        self.limits = limits or DecodeLimits()
        self.cache = cache
        self.batches = batches
        self.view = view
        self.shapes = shapes
        self.seed = seed
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = int(cache_mb * 1e6)
        self._unreadable: dict[int, str] = {}

    def __getitem__(self, number: int) -> ClipBatch | LoadFailure:
        """Batch ``number``; a ``LoadFailure`` when no readable replacement for a clip is found, or the data is damaged
        beyond single clips."""
        skipped: list[tuple[str, str]] = []
        loaded = []
        for visit in self.batches(number):
            try:
                clip = self._load_or_replace(visit, number, skipped)
            except UserError as error:
                return LoadFailure(str(error), complete=True)
            if clip is None:
                first = shown(": ".join(skipped[0]))
                return LoadFailure(f"{len(skipped)} clips in a row cannot be read, first {first}")
            loaded.append(clip)
        return ClipBatch(
            **_contents([clip.content for clip in loaded]),
            captions=tuple(clip.row.captions[clip.caption] for clip in loaded),
            keys=tuple(clip.row.key for clip in loaded),
            epochs=tuple(clip.visit.epoch for clip in loaded),
            visits=tuple(clip.visit.number for clip in loaded),
            number=number,
            fps=tuple(clip.fps for clip in loaded),
            factors=tuple(clip.row.factors for clip in loaded),
            skipped=tuple(dict.fromkeys(skipped)),
            micro={
                "original_resolution": torch.tensor([(clip.row.height, clip.row.width) for clip in loaded]).float(),
                "crop": torch.tensor([clip.crop for clip in loaded]).float(),
                "sampling_stride": torch.tensor([(clip.stride,) for clip in loaded]).float(),
            },
        )

    def _load_or_replace(self, visit: ClipRef, number: int, skipped: list[tuple[str, str]]) -> LoadedClip | None:
        view = self.view if self.shapes is None else self.shapes.view(number)
        planned, when = visit, moment(visit.epoch, visit.number)
        for attempt in range(MAX_REPLACEMENTS):
            key = f"clip {visit.position} of {self.index.path}"  # until its row is read
            try:
                row = self.index.row(visit.position)
                key = row.key
                return self.load(row, visit, view.at(row.fps))
            except CorruptClipError as error:
                reason = reason_of(error, key)
                self._unreadable[visit.position] = reason
                skipped.append((key, reason))
                peers = range(len(self.index)) if self.shapes is None else self.shapes.peers(number)
                place = seed_of(self.seed, key, when, "replacement", attempt) % len(peers)
                # far beyond its own visits in the epoch, none of which it repeats, nor what it stands in for elsewhere
                extra = seed_of(planned.position, when, "replacement", attempt)
                visit = ClipRef(int(peers[place]), planned.epoch, extra)
        return None

    def load(self, row: ClipRow, visit: ClipRef, view: ClipTransform) -> LoadedClip:
        """One clip, decoded and cut, or read from the cache.

        Raises:
            CorruptClipError: it cannot be read, whatever its file made a reader raise.
            DataError: a damaged cache.
        """
        if visit.position in self._unreadable:
            raise CorruptClipError(self._unreadable[visit.position])
        try:
            return self._load(row, visit, view)
        except UserError:
            raise
        except Exception as error:
            raise CorruptClipError(reason_of(error)) from error

    def _load(self, row: ClipRow, visit: ClipRef, view: ClipTransform) -> LoadedClip:
        if self.cache is not None:
            clip = self.cache.read(visit.position, self.view.number(visit))
            if clip.caption >= len(row.captions):
                raise CorruptClipError(f"the cache is of caption {clip.caption}, the index has {len(row.captions)}")
            return LoadedClip(clip, row, visit, clip.caption, row.fps / clip.stride, clip.crop, clip.stride)
        offset = self._choose(row, visit, "frame_offset", row.frames - view.span + 1)
        wanted = range(offset, offset + view.span, view.frame_stride)
        frames = self._scaled(row, visit.position, wanted, view)
        top = self._choose(row, visit, "crop_y", frames.shape[1] - view.height + 1)
        left = self._choose(row, visit, "crop_x", frames.shape[2] - view.width + 1)
        frames = frames[:, top : top + view.height, left : left + view.width]
        caption = 0
        if self.view.random and len(row.captions) > 1:
            caption = self._choose(row, visit, "caption", len(row.captions))
        fps = row.fps / view.frame_stride
        return LoadedClip(frames, row, visit, caption, fps, (top, left), view.frame_stride)

    def _choose(self, row: ClipRow, visit: ClipRef, purpose: str, choices: int) -> int:
        """A keyed number in [0, choices), or the middle one."""
        if choices <= 1 or not self.view.random:
            return (choices - 1) // 2
        return seed_of(self.seed, row.key, self.view.key(visit), purpose) % choices

    def _scaled(self, row: ClipRow, position: int, wanted: range, view: ClipTransform) -> np.ndarray:
        """The wanted frames, scaled but not cropped, from memory when they are kept there."""
        whole = self._cache.get(position)
        if whole is not None:
            return whole[wanted.start : wanted.stop : wanted.step]
        place = (self.index.root, row.shard, row.offset, row.size, row.key, row.crc)
        if self._cache_left <= 0 or row.frames > WHOLE_CLIP_RATIO * view.span:
            frames = read_frames(open_member(*place), row.frames_in_file(wanted), row.key, self.limits)
            return scale_to_cover(row.area(frames), view.height, view.width)
        # of a clip cut from a long file only its part is read
        member = read_member(*place) if row.first_frame is None else open_member(*place)
        frames = read_frames(member, row.frames_in_file(), row.key, self.limits)
        whole = scale_to_cover(row.area(frames), view.height, view.width)
        if len(whole) < wanted.stop:
            raise CorruptClipError(f"frame {wanted[-1]} is wanted but the video has {len(whole)}")
        if whole.nbytes <= self._cache_left:
            self._cache[position] = whole
            self._cache_left -= whole.nbytes
        return whole[wanted.start : wanted.stop : wanted.step]


def _contents(contents: Sequence[np.ndarray | CachedClip]) -> dict[str, Any]:
    """The frames or the encoded clips of a batch, by the name of their field."""
    encoded = [content for content in contents if isinstance(content, CachedClip)]
    if encoded:
        return {"pixels": None, "encoded": stack_encoded(encoded)}
    planes = [
        np.ascontiguousarray(content.transpose(3, 0, 1, 2)) for content in contents if isinstance(content, np.ndarray)
    ]
    # in a worker this makes the batch in shared memory, where torch.stack would have it copied there; bytes, since
    # a batch of float32 pixels costs more to hand over than to decode
    return {"pixels": None, "frames": default_collate([torch.from_numpy(one) for one in planes])}


def scale_to_cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale frames so that they just cover ``height`` x ``width``, keeping proportions; one side fits.

    The filter is torch's antialiased bicubic on uint8 (Keys a = -0.5 widened by the scale, as Pillow's),
    everywhere in vidlab, because metrics move with it. Frames already of the right size are returned as they
    are.

    Args:
        frames: uint8 (T, H, W, 3).
        height: smallest height to cover.
        width: smallest width to cover.
    """
    rows, columns = frames.shape[1:3]
    scale = max(height / rows, width / columns)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    if size == (rows, columns):
        return frames
    planes: Tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    scaled = interpolate(planes, size=size, mode="bicubic", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True)
class PlannedBatches:
    """The batches of one rank of a plan."""

    plan: Plan | ClipPlan
    rank: int

    def __call__(self, number: int) -> Sequence[ClipRef]:
        """The visits of batch ``number``."""
        return self.plan.batch(number, self.rank)


@dataclass(frozen=True)
class BucketShapes:
    """How the batches of a bucketed plan look.

    Args:
        plan: knows the bucket of a batch.
        rule: knows the distance of kept frames.
        random, views: as in ``ClipTransform``.
    """

    plan: ClipPlan
    rule: Bucketing
    random: bool = True
    views: int | None = None

    def view(self, number: int) -> ClipTransform:
        """The view of batch ``number``."""
        bucket = self.plan.bucket(number)
        return BucketView(
            bucket.frames, bucket.height, bucket.width, random=self.random, views=self.views, rule=self.rule
        )

    def peers(self, number: int) -> Sequence[int] | np.ndarray:
        """Positions of the clips of the bucket of batch ``number``."""
        return self.plan.peers(number)


@dataclass(frozen=True)
class FixedBatches:
    """The first ``clips`` positions dealt to the ranks in turn, epoch 0; the last batch may be smaller.

    ``clips`` must be a multiple of ``world_size``, so that all ranks have equally many batches.
    """

    clips: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-self.clips // (self.world_size * self.batch_size))

    def __call__(self, number: int) -> Sequence[ClipRef]:
        """The visits of batch ``number``."""
        mine = range(self.rank, self.clips, self.world_size)
        return [ClipRef(place, 0) for place in mine[number * self.batch_size : (number + 1) * self.batch_size]]
