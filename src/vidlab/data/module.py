"""The DataModule: from a source to planned batches, with exact resume and a limit on unreadable clips."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from vidlab.clip import ClipBatch
from vidlab.data.clip_transform import ClipTransform
from vidlab.data.dataset import FILTER, BucketShapes, ClipDataset, FixedBatches, LoadFailure, PlannedBatches
from vidlab.data.datasets.base import ClipSource
from vidlab.data.loader import BatchNumbers, ClipLoader
from vidlab.data.names import shown
from vidlab.data.samplers.bucketed import BucketedPlan, TrainingShapes, column, plan_buckets
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.clip_plan import ClipPlan, JointStart
from vidlab.data.samplers.loader_history import LoaderHistory, LoaderSettings, order_changes
from vidlab.data.samplers.plan import Plan, PlanState
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.index_checks import enlarged, odd_splits
from vidlab.data.storage.latent_cache import CacheHeader, ClipCache, refuse_stale
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError

log = logging.getLogger(__name__)


class ClipDataModule(L.LightningDataModule):
    """Training and validation batches of one source.

    Training is one endless loader of planned batches, beginning at ``batches_consumed``; the training module
    sets that to ``batch.number + 1`` after each batch, and checkpoints carry it. Validation is a fixed list
    of batches: the first ``val_clips`` clips of split ``val``, middle frames, middle crop, first caption,
    dealt to the ranks in turn.

    Use ``Trainer(use_distributed_sampler=False)``: the plan already gives each rank its own clips.

    Args:
        source: makes the data set.
        name: name of the data set in logs.
        frames: frames of a clip.
        height: pixels.
        width: pixels.
        frame_stride: distance of sampled frames in source frames; 2 halves the frame rate.
        batch_size: clips per batch and rank.
        num_workers: decoding processes; 0 decodes in the main process. Batches do not depend on it.
        val_clips: held-out clips used for validation; 0 turns it off.
        max_corrupt: unreadable clips tolerated: a share of all clips when below 1, otherwise a number of
            clips.
        seed: the run's seed; with the index it fixes the order, the crops and the captions.
        cache_decoded_mb: megabytes of decoded short clips kept in memory, shared out among the workers.
        max_megapixels, max_decoded_mb: what decoding a clip may take, see ``DecodeLimits``; beyond it is unreadable.
        difficulty: what ``source`` was asked for; for the record.
        path: where ``source`` reads; for the record.
        bucketing: trains every clip in a shape near its own; None, or one without ``max_tokens``, trains all in
            ``frames`` x ``height`` x ``width``. Validation has that shape always.
        views: different stretches, crops and captions of a training clip: None draws new ones each visit, ``n`` repeats
            them after ``n`` visits, 0 takes the middle and the first caption always. With ``cache``, None takes the
            cache's.
        cache: folder of encoded training clips (``curate.py stage=encode``), read in place of the videos. Held-out
            clips are decoded and encoded all the same.

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
    ) -> None:
        super().__init__()
        _require(1, frames=frames, height=height, width=width, frame_stride=frame_stride, batch_size=batch_size)
        _require(0, num_workers=num_workers, val_clips=val_clips, max_corrupt=max_corrupt)
        _require(0, cache_decoded_mb=cache_decoded_mb)
        if seed < 0:
            raise UserError(f"seed={seed}: it must be 0 or more")
        self.source = source
        self.name = name
        if views is not None:
            _require(0, views=views)
        self.cache_folder = cache
        if cache is not None and views is None:
            views = CacheHeader.read(cache).views
        self.view = ClipTransform(frames, height, width, frame_stride, random=views != 0, views=views or None)
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
        self.bucketing = None
        if bucketing is not None and bucketing.max_tokens is not None:
            self.bucketing = bucketing.completed(frames, frame_stride)
        self._data: SplitIndex | None = None
        self._history: LoaderHistory | None = None
        self._plans: dict[LoaderHistory, Plan] = {}
        self._planned: dict[LoaderHistory, BucketedPlan] = {}
        self._cache: ClipCache | None = None

    @property
    def rank(self) -> int:
        """This process's rank; 0 before a trainer is attached."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Processes that share the data; 1 before a trainer is attached."""
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def plan(self) -> Plan | ClipPlan:
        """The order of the training clips."""
        if self.bucketing is not None:
            return self.planned(self.world_size).plan
        history = self.history(self.world_size)
        if history not in self._plans:
            self._plans = {history: self._plain(history.current, history.start(self._plain))}
        return self._plans[history]

    def planned(self, world_size: int) -> BucketedPlan:
        """The bucketed order for a number of processes, and what it was made of.

        Raises:
            UserError: without ``bucketing``, or when it fits no clip.
        """
        if self.bucketing is None:
            raise UserError("data.bucketing.max_tokens is not set: the data is not bucketed")
        history = self.history(world_size)
        if history not in self._planned:
            start = history.start(lambda segment, start: self._bucketed(segment, start).plan)
            self._planned = {history: self._bucketed(history.current, start)}
        return self._planned[history]

    def history(self, world_size: int) -> LoaderHistory:
        """The segments of batches up to now, the last of them with this run's settings."""
        tokens = None if self.bucketing is None else self.bucketing.tokens_per_batch
        now = LoaderSettings(self.batches_consumed if self._history else 0, world_size, self.batch_size, tokens)
        return LoaderHistory(0, (now,)) if self._history is None else self._history.continued(now)

    def _plain(self, segment: LoaderSettings, start: PlanState | JointStart) -> Plan:
        assert isinstance(start, PlanState)
        return Plan(len(self.data.train), segment.batch_size, self.seed, segment.world_size, start)

    def _bucketed(self, segment: LoaderSettings, start: PlanState | JointStart) -> BucketedPlan:
        assert self.bucketing is not None
        rule = replace(self.bucketing, tokens_per_batch=segment.tokens_per_batch)
        return plan_buckets(self.data.train, rule, segment.batch_size, self.seed, segment.world_size, start)

    @property
    def data(self) -> "SplitIndex":
        """The usable clips; read from the source on first use."""
        if self._data is None:
            self._data = self._open()
        return self._data

    @property
    def fingerprint(self) -> str:
        """32 hex digits that two runs share when they see the same clips, in the same order and view."""
        clips_per_step = self.batch_size * self.world_size
        what = [self.data.hash, asdict(self.view), self.seed, clips_per_step, self.val_clips]
        if self.bucketing is not None:
            what.append(asdict(self.bucketing))
        return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def views(self) -> int | None:
        """Views of a training clip: None without end, 0 the middle one alone."""
        return self.view.views if self.view.random else 0

    @property
    def cache_key(self) -> dict[str, Any]:
        """What encoded clips depend on, as far as the data goes; buckets are compared clip by clip."""
        key = {"index": self.data.hash, "data.views": self.views, "data.filter": FILTER}
        key["seed"] = self.seed if self.views != 0 else None
        if self.bucketing is not None:
            return key | {"data.bucketing": True}
        view = self.view
        sizes = {"frames": view.frames, "height": view.height, "width": view.width, "frame_stride": view.frame_stride}
        return key | {f"data.{name}": value for name, value in sizes.items()}

    @property
    def cache(self) -> ClipCache | None:
        """The encoded training clips, when there are to be some.

        Raises:
            UserError: they are not finished, or of other clips or views than this run's.
        """
        if self.cache_folder is None:
            return None
        if self._cache is None:
            cache, key = ClipCache(self.cache_folder), self.cache_key
            own = {name: value for name, value in cache.header.key.items() if name in key or name.startswith("data.")}
            refuse_stale(self.cache_folder, own, key)
            self._cache = cache
        return self._cache

    @property
    def training_shapes(self) -> TrainingShapes:
        """The shape each training clip is cut to."""
        if self.bucketing is None:
            return TrainingShapes.same(self.view, len(self.data.train))
        return self.planned(self.world_size).shapes(self.data.train)

    def prepare_data(self) -> None:
        """Make the data set when it does not exist yet."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the index and refuse what cannot be trained on; see the class for the errors."""
        self._data = self.data
        if self.cache is not None and stage in (None, "fit"):
            shapes = self.training_shapes
            self.cache.check_clips(self.data.train, shapes.sizes, shapes.kept)

    def train_dataloader(self) -> ClipLoader:
        """Endless training batches of this rank, from ``batches_consumed``."""
        plan = self.plan
        batches = PlannedBatches(plan, self.rank)
        cache_mb = self.cache_decoded_mb / max(1, self.num_workers)
        shapes = None
        if self.bucketing is not None and not isinstance(plan, Plan):
            shapes = BucketShapes(plan, self.bucketing, self.view.random, self.view.views)
        dataset = ClipDataset(
            self.data.train, batches, self.view, self.seed, cache_mb, shapes, self.cache, limits=self.limits
        )
        return ClipLoader(dataset, BatchNumbers(lambda: self.batches_consumed), self.num_workers, self._inspect)

    def val_dataloader(self) -> ClipLoader | list[Any]:
        """The validation batches of this rank; an empty list when ``val_clips`` is 0."""
        if self.val_clips == 0:
            return []
        clips = min(self.val_clips, len(self.data.val)) // self.world_size * self.world_size
        if clips == 0:
            raise DataError(
                f"{self.world_size} processes share {len(self.data.val)} validation clips; each needs one: "
                "raise data.val_clips or the number of held-out clips, or set data.val_clips=0"
            )
        batches = FixedBatches(clips, self.batch_size, self.rank, self.world_size)
        workers = min(self.num_workers, len(batches))
        view = replace(self.view, random=False, views=None)
        cache_mb = self.cache_decoded_mb / max(1, workers)
        dataset = ClipDataset(self.data.val, batches, view, self.seed, cache_mb, limits=self.limits)
        return ClipLoader(dataset, BatchNumbers(lambda: 0, len(batches)), workers, self._inspect)

    def held_out_captions(self, count: int) -> list[str]:
        """Captions of the first ``count`` held-out clips, or of training clips when none is held out."""
        clips = self.data.val if len(self.data.val) else self.data.train
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
        rule = None if self.bucketing is None else json.dumps(asdict(self.bucketing), sort_keys=True)
        return {"index_hash": self.data.hash, "seed": self.seed, "bucketing": rule, "views": self.views}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint stopped. Ignored outside training, where no order is resumed.

        With another batch size or number of processes the epoch goes on with the clips not visited yet. With other
        data, another seed or other buckets there is no such epoch: refused, or with ``accept_changes`` a new epoch
        begins.

        Raises:
            UserError: when clips would come in another order.
        """
        if self.trainer is not None and self.trainer.state.fn not in (None, "fit"):
            return
        changes = order_changes(state_dict, self._order())
        if changes and not self.accept_changes:
            raise UserError(
                f"ckpt_path: clips would come in another order than in the checkpoint: {'; '.join(changes)}. Set it "
                "back to resume, or begin a new epoch in the new order with accept_changes=true"
            )
        before = LoaderHistory.of(state_dict["history"])
        if changes:
            rank_zero_only(log.warning)("another order of clips (%s): a new epoch begins", "; ".join(changes))
            first = replace(before.current, first=int(state_dict["batches_consumed"]))
            before = LoaderHistory(int(state_dict["epoch"]) + 1, (first,))
        self.batches_consumed, self._history = int(state_dict["batches_consumed"]), before
        self._history = self.history(self.world_size)
        if not before.current.like(self._history.current):
            rank_zero_only(log.info)(
                "batches are %s, and were %s: the epoch goes on without repeating or skipping a clip; losses differ "
                "from those of a run without the change", self._history.current, before.current
            )  # fmt: skip

    def _open(self) -> "SplitIndex":
        index = ClipIndex.open(self.source.prepare())
        self.corrupt.update(index.metadata.get("rejected", {}))
        total = len(index) + len(self.corrupt)
        self._check_corrupt(total)
        bucketed = self.bucketing is not None
        usable = index if bucketed and self.val_clips == 0 else self._long_enough(index)
        train, val = (index if bucketed else usable).select("train"), usable.select("val")
        if len(train) + len(val) < len(index) and (odd := odd_splits(index.splits())):
            rank_zero_warn(f"data={self.name}: {odd}")
        for split, rows, needed in (("train", train, 1), ("val", val, min(1, self.val_clips))):
            if len(rows) < needed:
                raise DataError(
                    f"data={self.name}: none of the {len(usable)} usable clips is in split {split!r}"
                    + (", set data.val_clips=0 to train without validation" if split == "val" else "")
                )
        seen = val if bucketed else usable
        if small := enlarged(column(seen, "height"), column(seen, "width"), self.view.height, self.view.width):
            rank_zero_warn(small)
        rank_zero_only(log.info)("data=%s: %d training and %d held-out clips", self.name, len(train), len(val))
        if 0 < len(val) < self.val_clips:
            rank_zero_info(f"data.val_clips={self.val_clips}, but {len(val)} are held out: using all of them")
        return SplitIndex(train, val, f"{index.hash}:{len(train)}", total)

    def _long_enough(self, index: ClipIndex) -> ClipIndex:
        """The clips with as many frames as the view spans."""
        view = self.view
        usable = index.select(min_frames=view.span)
        asked = f"data.frames={view.frames}, data.frame_stride={view.frame_stride}: {view.span} frames needed"
        if len(usable) == 0:
            longest = int(column(index, "frames").max(initial=0))
            possible = (longest - 1) // view.frame_stride + 1
            raise DataError(
                f"{asked} per clip, but the longest of {len(index)} clips has {longest}. "
                f"Set data.frames={possible} or lower" + (", or data.frame_stride=1" if view.frame_stride > 1 else "")
            )
        if len(usable) < len(index):
            where = "left out of validation" if self.bucketing is not None else "left out"
            rank_zero_warn(f"{asked}: {len(index) - len(usable)} of {len(index)} clips are shorter and {where}")
        return usable

    def _inspect(self, batch: ClipBatch | LoadFailure) -> ClipBatch:
        """Count unreadable clips in the main process."""
        if isinstance(batch, LoadFailure):
            where = f"data={self.name}: {batch.message}. Check the files under {self.data.train.root}"
            raise DataError(batch.message if batch.complete else where)
        for key, reason in batch.skipped:
            if key not in self.corrupt:
                self.corrupt[key] = reason
                self._check_corrupt(self.data.total)
        return batch

    def _check_corrupt(self, total: int) -> None:
        limit = self.max_corrupt * total if self.max_corrupt < 1 else self.max_corrupt
        if len(self.corrupt) <= limit:
            return
        first = "; ".join(shown(f"{key}: {reason}") for key, reason in list(self.corrupt.items())[:3])
        raise DataError(
            f"{len(self.corrupt)} of {total} clips of data={self.name} cannot be read, more than "
            f"data.max_corrupt={self.max_corrupt:g} allows ({first}). "
            "Mend or remove them, or raise data.max_corrupt"
        )


@dataclass(frozen=True)
class SplitIndex:
    """The usable clips of a data set.

    Args:
        train: clips to train on.
        val: held-out clips.
        hash: identity of the data set and the number of training clips, which together fix the order.
        total: clips of the data set, unusable ones included.
    """

    train: ClipIndex
    val: ClipIndex
    hash: str
    total: int


def _require(least: int, **settings: float | int) -> None:
    for key, value in settings.items():
        if value < least:
            raise UserError(f"data.{key}={value}: it must be {least} or more")
