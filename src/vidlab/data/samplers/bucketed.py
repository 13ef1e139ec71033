"""Makes the plan of an index by a bucketing rule, and tells what it is worth: token balance, padding, dropped clips."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vidlab.data.clip_transform import ClipTransform
from vidlab.data.samplers.assignment import Assignment
from vidlab.data.samplers.bucket_plan import BucketPlan, blocks_of
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.plan import BucketStats, Plan, PlanState
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.samplers.source_weights import SourceWeights
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import DataError, UserError


@dataclass(frozen=True)
class BucketedPlan:
    """A plan of an index, with the assignment to buckets and the rule that it was made by.

    Args:
        plan: the order.
        assignment: the bucket of every clip.
        bucketing: the rule, completed by the data's settings.
        unvisited: clips whose source has weight 0, by source.
    """

    plan: Plan
    assignment: Assignment
    bucketing: Bucketing
    unvisited: Mapping[str, int]

    @property
    def dropped(self) -> dict[str, int]:
        """Clips that are never visited, by reason; empty when there are none."""
        never = sum(stats.clips for stats in self.plan.stats if not stats.steps and stats.visits)
        return {
            **self.assignment.dropped,
            **{f"weight 0 of source {name!r}": clips for name, clips in self.unvisited.items() if clips},
            **({f"in a bucket that fills no step (tail={self.bucketing.tail})": never} if never else {}),
        }

    def transform(self, view: ClipTransform, number: int, fps: float) -> ClipTransform:
        """How batch ``number`` shows a clip of ``fps`` frames per second; ``view`` says what is drawn."""
        bucket, stride = self.plan.bucket(number), int(self.bucketing.step_at(fps))
        return replace(view, frames=bucket.frames, height=bucket.height, width=bucket.width, frame_stride=stride)

    def shapes(self, index: ClipIndex) -> "TrainingShapes":
        """The shape that each clip of ``index``, which the plan was made of, is cut to."""
        codes, buckets = self.assignment.codes, self.assignment.buckets
        table = np.array([(bucket.frames, bucket.height, bucket.width) for bucket in buckets], np.int32)
        frames, height, width = table[np.maximum(codes, 0)].T
        stride = np.broadcast_to(self.bucketing.step_at(index.numbers("fps")), codes.shape).astype(np.int32)
        return TrainingShapes(frames, height, width, stride, codes >= 0)

    @property
    def balance(self) -> "Balance":
        """Tokens of the steps of an epoch."""
        return Balance.of(self.plan.stats, self.bucketing)


@dataclass(frozen=True)
class TrainingShapes:
    """The shape each clip is cut to, int32 (clips,).

    Args:
        frames: of the clip.
        height, width: pixels.
        stride: source frames from one frame to the next.
        kept: bool (clips,), False for clips that are in no bucket.
    """

    frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    stride: np.ndarray
    kept: np.ndarray

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """The four columns by name."""
        return {name: getattr(self, name) for name in ("frames", "height", "width", "stride")}


@dataclass(frozen=True)
class Balance:
    """Token balance: tokens of one rank's batch over the steps of an epoch. Ranks have equally many in every step.

    Args:
        steps: steps by their tokens.
        repeated: tokens of clips that fill up the end of a bucket, as a share of all.
    """

    steps: Mapping[int, int]
    repeated: float

    @classmethod
    def of(cls, buckets: tuple[BucketStats, ...], bucketing: Bucketing) -> "Balance":
        """The balance of an epoch of these buckets."""
        steps: Counter[int] = Counter()
        repeated = trained = 0
        for stats in buckets:
            tokens = bucketing.tokens(stats.bucket)
            steps.update({tokens * size: count for size, count in stats.batches.items()})
            repeated += tokens * stats.repeated
            trained += tokens * (stats.visits - stats.left_out + stats.repeated)
        return cls(dict(steps), repeated / max(trained, 1))

    @property
    def bound(self) -> float:
        """The most by which the tokens of two steps differ, as a share of the larger."""
        return 1 - min(self.steps) / max(self.steps)


def plan_buckets(
    index: ClipIndex,
    bucketing: Bucketing,
    batch_size: int,
    seed: int,
    world_size: int,
    start: PlanState | None = None,
) -> BucketedPlan:
    """The plan of an index.

    Args:
        index: the clips.
        bucketing: the rule, completed by the data's settings.
        batch_size: ``data.batch_size``.
        seed: not negative.
        world_size: ranks.
        start: what an earlier plan has remaining.

    Raises:
        DataError: no clip is in any bucket.
        UserError: the settings leave no step, or name a source that no clip has.
    """
    assignment = bucketing.assignment(index)
    if not assignment.buckets:
        reasons = ", ".join(f"{clips} {reason}" for reason, clips in assignment.dropped.items())
        raise DataError(
            f"data.bucketing: no clip of {len(index)} is in any bucket ({reasons}). Lower data.bucketing.stride, "
            "temporal_stride, min_frames or min_tokens, or raise max_aspect"
        )
    least, sizes = bucketing.min_clips, bucketing.batch_sizes(assignment.buckets, batch_size)
    assignment = assignment.merge_rare([size * world_size if least is None else least for size in sizes])
    repeats, unvisited = None, {}
    if bucketing.weights:
        groups, weights = weight_groups(index, bucketing.weights)
        unvisited = {name: int(np.sum((groups == place) & (assignment.codes >= 0)))
                     for place, (name, weight) in enumerate(weights.items()) if not weight}  # fmt: skip
        repeats = SourceWeights(assignment.codes, groups, list(weights.values()))
    make = _Maker(bucketing, batch_size, seed, world_size, repeats, assignment, index)
    return BucketedPlan(make.joint(start or PlanState()), assignment, bucketing, unvisited)


@dataclass(frozen=True)
class _Maker:
    bucketing: Bucketing
    batch_size: int
    seed: int
    world_size: int
    repeats: SourceWeights | None
    assignment: Assignment
    index: ClipIndex

    def joint(self, start: PlanState) -> Plan:
        """One plan of everything, or images and videos in turn where that is asked for and there are both."""
        places = range(len(self.assignment.buckets))
        images = [place for place in places if self.assignment.buckets[place].frames == 1]
        videos = [place for place in places if self.assignment.buckets[place].frames > 1]
        every = self.bucketing.image_every
        if every is None or not images or not videos:
            return self.one([*images, *videos], start)
        own = start.interleaved(every)
        return InterleavedPlan(self.one(videos, own[0]), self.one(images, own[1]), every)

    def one(self, places: list[int], start: PlanState) -> Plan:
        """The plan of some of the buckets."""
        chosen, sizes = sorted(places), self.bucketing.batch_sizes(self.assignment.buckets, self.batch_size)
        part = self.assignment
        if len(chosen) < len(part.buckets):
            table = np.full(len(part.buckets), -1, np.int16)
            table[chosen] = np.arange(len(chosen))
            codes = np.where(part.codes >= 0, table[np.maximum(part.codes, 0)], np.int16(-1))
            part = Assignment(tuple(part.buckets[place] for place in chosen), codes)
        if len(chosen) == 1 and self.repeats is None:
            return SingleBucketPlan(part, sizes[chosen[0]], self.seed, self.world_size, start)
        repeats = self.repeats and SourceWeights(part.codes, self.repeats.groups, self.repeats.weights)
        batch_sizes, bucketing = [sizes[place] for place in chosen], self.bucketing
        blocks = blocks_of(self.index.shard_numbers())
        try:
            return BucketPlan(
                part, batch_sizes, self.seed, self.world_size, bucketing.tail, bucketing.window, blocks, repeats, start
            )
        except ValueError as error:
            raise UserError(
                f"data.bucketing.tail={bucketing.tail}: {error}. Use data.bucketing.tail=pad, or lower "
                "data.bucketing.tokens_per_batch or data.batch_size"
            ) from error


def weight_groups(index: ClipIndex, weights: Mapping[str, float]) -> tuple[np.ndarray, dict[str, float]]:
    """The place of each clip's weight, uint8 (clips,), and the weights by name; the last is 1, of the other clips.

    A clip belongs to the longest name that its source is, or begins with before a "/".

    Raises:
        UserError: no clip has such a source, or there are more than 255.
    """
    given = dict(sorted(weights.items(), key=lambda item: len(item[0])))
    groups = np.full(len(index), len(given), np.uint8)
    if len(given) > 255:
        raise UserError(f"data.bucketing.weights: {len(given)} sources, and 255 are possible")
    found: set[str] = set()
    some: list[str] = []
    for start, codes, names in index.texts("source"):
        some = some or names[:5]
        for place, name in enumerate(given):
            belongs = np.array([source == name or source.startswith(f"{name}/") for source in names], bool)[codes]
            groups[start : start + len(codes)][belongs] = place
            found |= {name} if belongs.any() else set()
    for name in given:
        if name not in found:
            raise UserError(f"data.bucketing.weights.{name}: no clip has this source; some sources are {some}")
    return groups, {**{name: float(weight) for name, weight in given.items()}, "": 1.0}
