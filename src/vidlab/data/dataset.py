"""The data set that a loader reads: batches of clips, decoded, sampled, scaled, cropped and captioned.

One item is one whole batch, found by its number. Every choice is keyed by (seed, clip key, epoch, visit, purpose),
so a batch is the same whoever makes it: any worker, any rank, before or after a resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from typing_extensions import override

from vidlab.clip import ClipBatch, EncodedClips, TextEmbedding
from vidlab.data.clip_reader import ClipReader, LoadedClip
from vidlab.data.clip_transform import ClipTransform
from vidlab.data.names import reason_of, shown
from vidlab.data.samplers.bucketed import BucketedPlan
from vidlab.data.samplers.plan import ClipRef
from vidlab.data.storage.latent_cache import CachedClip
from vidlab.errors import CorruptClipError, UserError
from vidlab.randomness import moment, seed_of

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


@runtime_checkable
class RankBatches(Protocol):
    """The batches of one rank, by number."""

    def clips(self, number: int) -> Sequence[ClipRef]:
        """The clips of batch ``number``."""
        ...

    def transform(self, number: int, fps: float) -> ClipTransform:
        """How batch ``number`` shows a clip of ``fps`` frames per second. A clip has one shape in all its batches."""
        ...

    def same_bucket(self, number: int) -> Sequence[int] | np.ndarray:
        """Positions of the clips that may replace one of batch ``number``."""
        ...


class ClipDataset(Dataset[ClipBatch | LoadFailure]):
    """A map from batch number to batch.

    A clip that cannot be read is replaced by another one, found by its key, and named in ``ClipBatch.skipped``; the
    other one then has other random numbers than in its own visits.

    Args:
        reader: reads clips.
        batches: which clips form which batch.
    """

    def __init__(self, reader: ClipReader, batches: RankBatches) -> None:
        self.reader = reader
        self.batches = batches

    def __getitem__(self, number: int) -> ClipBatch | LoadFailure:
        """Batch ``number``; a ``LoadFailure`` when no readable replacement for a clip is found, or the data is damaged
        beyond single clips."""
        skipped: list[tuple[str, str]] = []
        loaded = []
        for visit in self.batches.clips(number):
            try:
                clip = self._load_or_replace(visit, number, skipped)
            except UserError as error:
                return LoadFailure(str(error), complete=True)
            if clip is None:
                first = shown(": ".join(skipped[0]))
                return LoadFailure(f"{len(skipped)} clips in a row cannot be read, first {first}")
            loaded.append(clip)
        return ClipBatch(
            _stacked([clip.content for clip in loaded]),
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
        index, seed = self.reader.index, self.reader.seed
        planned, when = visit, moment(visit.epoch, visit.number)
        for attempt in range(MAX_REPLACEMENTS):
            key = f"clip {visit.position} of {index.path}"  # until its row is read
            try:
                row = index.row(visit.position)
                key = row.key
                return self.reader.load(row, visit, self.batches.transform(number, row.fps))
            except CorruptClipError as error:
                reason = reason_of(error, key)
                self.reader.unreadable[visit.position] = reason
                skipped.append((key, reason))
                others = self.batches.same_bucket(number)
                place = seed_of(seed, key, when, "replacement", attempt) % len(others)
                # far beyond its own visits in the epoch, none of which it repeats, nor what it stands in for elsewhere
                extra = seed_of(planned.position, when, "replacement", attempt)
                visit = ClipRef(int(others[place]), planned.epoch, extra)
        return None


def _stacked(contents: Sequence[np.ndarray | CachedClip]) -> Tensor | EncodedClips:
    """The content of a batch: bytes (B, 3, T, H, W), or encoded clips."""
    encoded = [content for content in contents if isinstance(content, CachedClip)]
    if encoded:
        return stack_encoded(encoded)
    planes = [
        np.ascontiguousarray(content.transpose(3, 0, 1, 2)) for content in contents if isinstance(content, np.ndarray)
    ]
    # in a worker this makes the batch in shared memory, where torch.stack would have it copied there; bytes, since
    # a batch of float32 pixels costs more to hand over than to decode
    return default_collate([torch.from_numpy(one) for one in planes])


def stack_encoded(clips: Sequence[CachedClip]) -> EncodedClips:
    """A batch of clips of one size."""
    moments = torch.stack([clip.moments for clip in clips], dim=1)
    texts = [clip.text for clip in clips if clip.text is not None]
    log_variance = moments[1] if len(moments) > 1 else None
    return EncodedClips(moments[0], log_variance, clips[0].size, stack_text(texts) if texts else None)


def stack_text(texts: Sequence[Mapping[str, Tensor]]) -> TextEmbedding:
    """Captions of different length, padded with zeros."""
    tokens, mask = (
        torch.nn.utils.rnn.pad_sequence([text[name] for text in texts], batch_first=True) for name in ("tokens", "mask")
    )
    whole = all(bool(text["mask"].all()) for text in texts)
    lengths = tuple(len(text["mask"]) for text in texts) if whole else None
    return TextEmbedding(tokens, mask, torch.stack([text["pooled"] for text in texts]), lengths)


@dataclass(frozen=True)
class PlannedBatches(RankBatches):
    """The batches of one rank of a plan; ``view`` says what is drawn of a clip at random.

    With a ``key_frame_stride`` every second batch, the second first, shows frames that far apart, in source frames.
    """

    planned: BucketedPlan
    rank: int
    view: ClipTransform
    key_frame_stride: int | None = None

    @override
    def clips(self, number: int) -> Sequence[ClipRef]:
        return self.planned.plan.batch(number, self.rank)

    @override
    def transform(self, number: int, fps: float) -> ClipTransform:
        view = self.planned.transform(self.view, number, fps)
        if self.key_frame_stride is None or number % 2 == 0:
            return view
        return replace(view, frame_stride=self.key_frame_stride)

    @override
    def same_bucket(self, number: int) -> np.ndarray:
        return self.planned.plan.same_bucket(number)


@dataclass(frozen=True, kw_only=True)
class OneViewBatches(RankBatches):
    """Batches without a plan: all ``total`` clips are in one bucket and seen as ``view`` says."""

    total: int
    view: ClipTransform

    @override
    def transform(self, number: int, fps: float) -> ClipTransform:
        return self.view

    @override
    def same_bucket(self, number: int) -> range:
        return range(self.total)


@dataclass(frozen=True)
class FixedBatches(OneViewBatches):
    """The first ``count`` of ``total`` clips dealt to the ranks in turn, epoch 0; the last batch may be smaller.

    ``count`` must be a multiple of ``world_size``, so that all ranks have equally many batches.
    """

    count: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-self.count // (self.world_size * self.batch_size))

    @override
    def clips(self, number: int) -> Sequence[ClipRef]:
        mine = range(self.rank, self.count, self.world_size)
        return [ClipRef(place, 0) for place in mine[number * self.batch_size : (number + 1) * self.batch_size]]


@dataclass(frozen=True)
class ChosenClips(OneViewBatches):
    """One batch of clips that are named by their positions among ``total``, epoch 0."""

    positions: Sequence[int]

    @override
    def clips(self, number: int) -> Sequence[ClipRef]:
        return [ClipRef(position, 0) for position in self.positions]
