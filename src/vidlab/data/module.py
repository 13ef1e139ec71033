"""The LightningDataModule of every data set: training and validation batches, and exact resume in mid-epoch."""

import json
import logging
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from vidlab.clip import ClipBatch
from vidlab.data.clip_reader import ClipReader
from vidlab.data.clip_transform import FILTER, ClipTransform
from vidlab.data.dataset import ClipDataset, FixedBatches, LoadFailure, PlannedBatches
from vidlab.data.datasets.base import ClipSource
from vidlab.data.loader import BatchNumbers, ClipLoader
from vidlab.data.samplers.bucketed import BucketedPlan, plan_buckets
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.loader_history import LoaderHistory, LoaderSettings, resumed_history
from vidlab.data.samplers.plan import Plan, PlanState
from vidlab.data.split_index import SplitIndex, refuse_too_many_corrupt, split_index
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.latent_cache import CacheHeader, ClipCache, matching_cache
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError
from vidlab.parallel.ranks import data_ranks

log = logging.getLogger(__name__)


class ClipDataModule(L.LightningDataModule):
    """Training and validation batches of one source.

    Training is one endless loader of planned batches, beginning at ``batches_consumed``; the training module sets that
    to ``batch.number + 1`` after each batch, and checkpoints carry it. Validation is a fixed list of batches: the first
    ``val_clips`` clips of split ``val``, middle frames, middle crop, first caption, dealt to the ranks in turn.

    Use ``Trainer(use_distributed_sampler=False)``: the plan already gives each rank its own clips.

    Args:
        source: makes the data set.
        name: name of the data set in logs.
        frames: frames of a clip.
        height, width: pixels.
        frame_stride: distance of sampled frames in source frames; 2 halves the frame rate.
        key_frame_stride: a longer stride of every second training batch; None shows all alike. See ``PlannedBatches``.
        batch_size: clips per batch and rank.
        num_workers: decoding processes; 0 decodes in the main process. Batches do not depend on it.
        val_clips: held-out clips used for validation; 0 turns it off.
        max_corrupt: unreadable clips tolerated: a share of all clips when below 1, otherwise a number of clips.
        seed: the run's seed; with the index it fixes the order, the crops and the captions.
        cache_decoded_mb: megabytes of decoded short clips kept in memory, shared out among the workers.
        max_megapixels, max_decoded_mb: what decoding a clip may take, see ``DecodeLimits``; beyond it is unreadable.
        difficulty, path: what ``source`` was asked for and where it reads; for the record.
        bucketing: trains every clip in a shape near its own; None, or one without ``max_tokens``, trains all in
            ``frames`` x ``height`` x ``width``. Validation has that shape always.
        views: different temporal segments, crops and captions of a training clip: None draws new ones each visit, ``n``
            repeats them after ``n`` visits, 0 takes the middle and the first caption always. With ``cache``, None takes
            the cache's.
        cache: folder of encoded training clips (``curate.py stage=encode``), read in place of the videos. Held-out
            clips are decoded and encoded all the same.
        images: clips of one frame, any of them in training and the middle one in validation; ``frames`` is then what
            the source makes, and not what is shown of it.

    Attributes:
        accept_changes: resume although other clips come in another order; False refuses.

    Raises:
        UserError: for a setting out of range, before any data is touched.
    """

    def __init__(
        self,
        source: ClipSource,
        name: str,
        frames: int,
        height: int,
        width: int,
        frame_stride: int = 1,
        key_frame_stride: int | None = None,
        batch_size: int = 16,
        num_workers: int = 1,
        val_clips: int = 64,
        max_corrupt: float | int = 0.01,
        seed: int = 0,
        cache_decoded_mb: float | int = 256,
        max_megapixels: float | int = 64,
        max_decoded_mb: float | int = 4000,
        difficulty: str | None = None,
        path: str | None = None,
        bucketing: Bucketing | None = None,
        views: int | None = None,
        cache: str | None = None,
        images: bool | None = None,
    ) -> None:
        super().__init__()
        _require(1, frames=frames, height=height, width=width, frame_stride=frame_stride, batch_size=batch_size)
        _require(0, num_workers=num_workers, val_clips=val_clips, max_corrupt=max_corrupt)
        _require(0, cache_decoded_mb=cache_decoded_mb, views=views or 0)
        frames = 1 if images else frames
        if seed < 0:
            raise UserError(f"seed={seed}: it must be 0 or more")
        _check_key_frames(key_frame_stride, frame_stride, cache, bucketing)
        self.source = source
        self.name: str = name
        self.cache_folder = cache
        if cache is not None and views is None:
            views = CacheHeader.read(cache).views
        self.view = ClipTransform(frames, height, width, frame_stride, random=views != 0, views=views or None)
        self.key_frame_stride = key_frame_stride
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_clips = val_clips
        self.max_corrupt = max_corrupt
        self.seed = seed
        self.cache_decoded_mb = cache_decoded_mb
        self.limits = DecodeLimits(max_megapixels, max_decoded_mb)
        self.description = {"difficulty": difficulty, "path": path}
        self.batches_consumed = 0
        self.accept_changes = False
        self.corrupt: dict[str, str] = {}
        self.bucketing = (bucketing or Bucketing()).completed(frames, height, width, frame_stride)
        self._data: SplitIndex | None = None
        self._history: LoaderHistory | None = None
        self._planned: dict[LoaderHistory, BucketedPlan] = {}
        self._cache: ClipCache | None = None

    @property
    def world_size(self) -> int:
        """Processes with clips of their own; 1 before a trainer is attached."""
        return data_ranks(self.trainer).size

    @property
    def plan(self) -> Plan:
        """The order of the training clips."""
        return self.planned(self.world_size).plan

    def planned(self, world_size: int) -> BucketedPlan:
        """The order for a number of processes, and what it was made of; see ``plan_buckets`` for the errors."""
        history = self.history(world_size)
        if history not in self._planned:
            start = history.start(lambda settings, start: self._plan(settings, start).plan)
            self._planned = {history: self._plan(history.current, start)}
        return self._planned[history]

    def _plan(self, settings: LoaderSettings, start: PlanState) -> BucketedPlan:
        rule = replace(self.bucketing, tokens_per_batch=settings.tokens_per_batch)
        return plan_buckets(self.data.train, rule, settings.batch_size, self.seed, settings.world_size, start)

    def history(self, world_size: int) -> LoaderHistory:
        """The segments of batches up to now, the last of them with this run's settings."""
        first = self.batches_consumed if self._history else 0
        now = LoaderSettings(first, world_size, self.batch_size, self.bucketing.tokens_per_batch)
        return LoaderHistory(0, (now,)) if self._history is None else self._history.continued(now)

    @property
    def data(self) -> SplitIndex:
        """The usable clips; read from the source on first use."""
        if self._data is None:
            index = ClipIndex.open(self.source.prepare())
            self.corrupt.update(index.metadata.get("rejected", {}))
            refuse_too_many_corrupt(self.corrupt, len(index) + len(self.corrupt), self.max_corrupt, self.name)
            self._data = split_index(index, self.name, self.view, self.bucketing, self.val_clips, self.key_frame_stride)
        return self._data

    @property
    def fingerprint(self) -> str:
        """32 hex digits that two runs share when they see the same clips, in the same order and view."""
        clips_per_step = self.batch_size * self.world_size
        what = [self.data.hash, asdict(self.view), self.seed, clips_per_step, self.val_clips]
        what += filter(None, [self.bucketing.recorded, self.key_frame_stride])
        return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def views(self) -> int | None:
        """Views of a training clip: None without end, 0 the middle one alone."""
        return self.view.views if self.view.random else 0

    @property
    def cache_key(self) -> dict[str, Any]:
        """What encoded clips depend on, as far as the data goes."""
        key = {"index": self.data.hash, "data.views": self.views, "data.filter": FILTER}
        return key | {"seed": self.seed if self.views != 0 else None} | self.bucketing.cache_key

    @property
    def cache(self) -> ClipCache | None:
        """The encoded training clips, when there are to be some.

        Raises:
            UserError: they are not finished, or of other clips or views than this run's.
        """
        if self._cache is None and self.cache_folder is not None:
            self._cache = matching_cache(self.cache_folder, self.cache_key)
        return self._cache

    def prepare_data(self) -> None:
        """Make the data set when it does not exist yet."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the index and refuse what cannot be trained on; see the class for the errors."""
        train = self.data.train
        if self.cache is not None and stage in (None, "fit"):
            shapes = self.planned(self.world_size).shapes(train)
            self.cache.check_clips(train, shapes.sizes, shapes.kept)

    def train_dataloader(self) -> ClipLoader:
        """Endless training batches of this rank, from ``batches_consumed``."""
        planned, rank = self.planned(self.world_size), data_ranks(self.trainer).rank
        batches = PlannedBatches(planned, rank, self.view, self.key_frame_stride)
        kept_mb = self.cache_decoded_mb / max(1, self.num_workers)
        reader = ClipReader(self.data.train, self.view, self.seed, kept_mb, self.cache, self.limits)
        numbers = BatchNumbers(lambda: self.batches_consumed)
        return ClipLoader(ClipDataset(reader, batches), numbers, self.num_workers, self._inspect)

    def val_dataloader(self) -> ClipLoader | list[Any]:
        """The validation batches of this process, shared with none; an empty list when ``val_clips`` is 0.

        Raises:
            DataError: fewer held-out clips than processes.
        """
        if self.val_clips == 0:
            return []
        val = self.data.val
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        clips = _dealt(self.val_clips, len(val), ranks)
        view = replace(self.view, random=False, views=None)
        batches = FixedBatches(clips, self.batch_size, rank, ranks, total=len(val), view=view)
        workers = min(self.num_workers, len(batches))
        reader = ClipReader(val, view, self.seed, self.cache_decoded_mb / max(1, workers), limits=self.limits)
        return ClipLoader(ClipDataset(reader, batches), BatchNumbers(lambda: 0, len(batches)), workers, self._inspect)

    def held_out_captions(self, count: int) -> list[str]:
        """Captions of the first ``count`` held-out clips, or of training clips when none is held out."""
        clips = self.data.shown
        return [clips.row(position).captions[0] for position in range(min(count, len(clips)))]

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and what its order is made of."""
        return {
            "batches_consumed": self.batches_consumed,
            "epoch": self.plan.epoch_at(self.batches_consumed),
            "history": self.history(self.world_size).state(),
            **self._order(),
        }

    def _order(self) -> dict[str, Any]:
        rule = self.bucketing.recorded and json.dumps(self.bucketing.recorded, sort_keys=True)
        return {"index_hash": self.data.hash, "seed": self.seed, "bucketing": rule, "views": self.views}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint stopped; nothing outside training, where no order is resumed.

        With another batch size or number of processes the epoch goes on with the clips not visited yet. With other
        data, another seed or other buckets there is no such epoch: refused, or ``accept_changes`` begins a new one.

        Raises:
            UserError: when clips would come in another order.
        """
        if self.trainer is not None and self.trainer.state.fn not in (None, "fit"):
            return
        before = resumed_history(state_dict, self._order(), self.accept_changes)
        self.batches_consumed, self._history = int(state_dict["batches_consumed"]), before
        self._history = self.history(self.world_size)
        if not before.current.like(self._history.current):
            rank_zero_only(log.info)(
                "batches are %s, and were %s: the epoch goes on without repeating or skipping a clip; losses differ "
                "from those of a run without the change", self._history.current, before.current
            )  # fmt: skip

    def _inspect(self, batch: ClipBatch | LoadFailure) -> ClipBatch:
        """Count unreadable clips in the main process."""
        if isinstance(batch, LoadFailure):
            where = f"data={self.name}: {batch.message}. Check the files under {self.data.train.root}"
            raise DataError(batch.message if batch.complete else where)
        for key, reason in batch.skipped:
            if key not in self.corrupt:
                self.corrupt[key] = reason
                refuse_too_many_corrupt(self.corrupt, self.data.total, self.max_corrupt, self.name)
        return batch


def _require(least: int, **settings: float | int) -> None:
    for key, value in settings.items():
        if value < least:
            raise UserError(f"data.{key}={value}: it must be {least} or more")


def _dealt(asked: int, held_out: int, ranks: int) -> int:
    """Validation clips of which each of ``ranks`` processes has as many."""
    clips = min(asked, held_out) // ranks * ranks
    if clips == 0:
        raise DataError(
            f"{ranks} processes share {held_out} validation clips; each needs one: "
            "raise data.val_clips or the number of held-out clips, or set data.val_clips=0"
        )
    return clips


def _check_key_frames(far: int | None, near: int, cache: str | None, bucketing: Bucketing | None) -> None:
    if far is None:
        return
    _require(near + 1, key_frame_stride=far)
    one_stride = {"cache": cache, "bucketing.max_tokens": bucketing and bucketing.max_tokens}
    for key, value in one_stride.items():
        if value is not None:
            raise UserError(
                f"data.key_frame_stride shows clips at two strides, and data.{key} knows one: leave one of them out."
            )
