"""Token bucketing: the rule that gives each clip a shape near its own, and each batch so many tokens.

A token here is the paper's: one pixel of one latent frame, so a clip has ``latent frames * height * width`` of them.
The number that a denoiser attends to is this divided by ``stride ** 2``, when ``stride`` is the side of its token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from math import gcd, isqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from vidlab.data.samplers.assignment import CHUNK, REASONS, Assignment, Bucket
from vidlab.data.samplers.step_times import StepTimes, read_step_times
from vidlab.data.samplers.steps import TAILS
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import UserError

RATIOS = ((1, 1), (3, 4), (4, 3), (9, 16), (16, 9))
MAX_BUCKETS = 2**15


@dataclass(frozen=True)
class Bucketing:
    """Min-max token bucketing (Open-Sora Plan, section 3.1), and how batches are made of buckets.

    Space, equations 17 to 19: a ratio (r^h, r^w) is trained at ``r^h k s`` x ``r^w k s`` pixels, with the largest whole
    k that keeps ``h w <= m`` and that the clip covers: no clip is enlarged. The nearest ratio (in log h/w) with k of at
    least 1 is taken. With ``ratios=None`` the rule is that of the released code: shrink to ``h w <= m`` if larger,
    cut whole pixels off, round down to a multiple of s.

    Time: the most frames that the autoencoder takes, ``f n`` or ``1 + f n``, out of those a clip has.

    The paper leaves open what happens to the rest. Here a clip that is short, small or of an extreme ratio is trained
    in the nearest bucket it covers, unless ``min_frames``, ``min_tokens`` or ``max_aspect`` drop it (the released code
    drops below 29 frames, below m / 4 and beyond 2); buckets too rare to fill a step are merged, see ``min_clips``.

    Args:
        max_tokens: m, the largest height x width in pixels; None turns bucketing off.
        stride: s in pixels, the autoencoder's spatial stride times the denoiser's patch.
        ratios: coprime pairs (r^h, r^w), or None for any ratio.
        max_frames: most frames of a clip; None takes ``data.frames``.
        min_frames: clips that give fewer frames are dropped.
        temporal_stride: f, frames to a latent frame.
        first_frame_alone: frame counts are ``1 + f n`` (causal autoencoders) instead of ``f n``.
        latent_multiple: latent frames are a multiple of this, as sequence parallelism wants it.
        frame_step: every ``frame_step``-th source frame is kept; None takes ``data.frame_stride``.
        fps: frames per second to sample at instead, by keeping every round(source fps / fps)-th frame.
        min_tokens: clips whose bucket has fewer tokens in a frame are dropped; None drops none.
        max_aspect: clips whose longer side is more than this times the shorter are dropped; None drops none.
        tokens_per_batch: tokens of a batch on one rank, at most; None is ``data.batch_size`` clips of the largest
            bucket.
        step_times: a file of ``vidlab step_times``, by which batches take equal time instead of having equal tokens.
        tail: what becomes of the clips that fill no step at the end of an epoch. ``drop``: left out, others each
            epoch; ``pad``: filled up with clips of the bucket that were already seen; ``smaller``: a smaller batch, the
            same on each rank, filled up by fewer than world-size clips. A single bucket needs none: its epochs are
            joined.
        min_clips: buckets with fewer clips move to the largest that their clips cover; None is those that fill no
            step.
        image_every: every so many steps are one of images (buckets of one frame), where there are both. None mixes them
            as they come; 9 is M4V's one step of images to eight of videos.
        weights: visits per epoch of the clips of a source, by ``source`` or the beginning of it up to a "/"; 1 where
            none is given.
        window: about how many clips are shuffled together: those of whole shards, taken in random order, so that
            reading stays local.

    Raises:
        UserError: a setting out of range.
    """

    max_tokens: int | None = None
    stride: int = 16
    ratios: Sequence[Sequence[int]] | None = RATIOS
    max_frames: int | None = None
    min_frames: int = 1
    temporal_stride: int = 1
    first_frame_alone: bool = False
    latent_multiple: int = 1
    frame_step: int | None = None
    fps: float | None = None
    min_tokens: int | None = None
    max_aspect: float | None = None
    tokens_per_batch: int | None = None
    step_times: str | None = None
    tail: str = "pad"
    min_clips: int | None = None
    image_every: int | None = None
    weights: Mapping[str, float] | None = None
    window: int = 65536
    times: StepTimes | None = field(default=None, init=False)

    # whether clips shorter than ``data.frames`` are trained as well
    trains_short: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_ranges(self)
        self._check_ratios()
        if self.step_times is not None:
            object.__setattr__(self, "times", read_step_times(Path(self.step_times)))

    def _check_ratios(self) -> None:
        if self.ratios is None:
            return
        pairs = tuple(tuple(int(side) for side in ratio) for ratio in self.ratios)
        if not pairs or any(len(pair) != 2 or min(pair) < 1 or gcd(*pair) != 1 for pair in pairs):
            shown = [list(ratio) for ratio in self.ratios]
            raise UserError(
                f"data.bucketing.ratios={shown}: it must be pairs of coprime whole numbers, height before width, such "
                "as [[1,1],[9,16]], or null for any ratio"
            )
        object.__setattr__(self, "ratios", pairs)
        if self.max_tokens is not None and not any(self._largest_scale(pair) for pair in pairs):
            least = min(h * w for h, w in pairs) * self.stride**2
            raise UserError(
                f"data.bucketing.max_tokens={self.max_tokens}: no ratio fits at data.bucketing.stride={self.stride}; "
                f"it must be {least} or more"
            )

    def _largest_scale(self, ratio: Sequence[int]) -> int:
        """k of equation 19."""
        assert self.max_tokens is not None
        return isqrt(self.max_tokens // (ratio[0] * ratio[1] * self.stride**2))

    def completed(self, frames: int, height: int, width: int, frame_step: int) -> "Bucketing":
        """The same rule with what is None filled in from the data's settings; without ``max_tokens``, one shape."""
        if self.max_tokens is None:
            return SingleShape(frame_step=frame_step, shape=Bucket(frames, height, width))
        return replace(self, max_frames=self.max_frames or frames, frame_step=self.frame_step or frame_step)

    @property
    def recorded(self) -> dict[str, Any] | None:
        """What checkpoints keep of the rule, for the order of the clips depends on it; None for one shape."""
        found = asdict(self)  # without the place of the times, which may move, and as ever where there are none
        return {name: one for name, one in found.items() if name != "step_times" and (name != "times" or one)}

    @property
    def cache_key(self) -> dict[str, Any]:
        """What encoded clips depend on; the shapes of buckets are compared clip by clip."""
        return {"data.bucketing": True}

    @property
    def summary(self) -> list[str]:
        """The numbers of the rule, in lines of text."""
        least, most = self.token_range()
        lines = [
            f"max_tokens={self.max_tokens} stride={self.stride}: {least} to {most} tokens in a frame (pixels; "
            f"{least / self.stride**2:g} to {most / self.stride**2:g} squares of {self.stride})"
        ]
        for (height, width), needed in self.unused_ratios().items():
            lines.append(f"  ratio {height}:{width} is not used: it needs data.bucketing.max_tokens={needed}")
        return lines

    def token_range(self) -> tuple[int, int]:
        """Fewest (equation 20) and most tokens of a frame, among clips large enough for their ratio."""
        assert self.max_tokens is not None
        if self.ratios is None:
            return self.min_tokens or self.stride**2, self.max_tokens
        tokens = [h * w * (self._largest_scale((h, w)) * self.stride) ** 2 for h, w in self.ratios]
        return min(found for found in tokens if found), max(tokens)

    def unused_ratios(self) -> dict[tuple[int, int], int]:
        """Ratios that not even k = 1 fits into m, each with the m it would need."""
        pairs = [(ratio[0], ratio[1]) for ratio in self.ratios or ()]
        return {(h, w): h * w * self.stride**2 for h, w in pairs if not self._largest_scale((h, w))}

    def latent_frames(self, frames: int) -> int:
        """Frames of the latents of a clip of ``frames`` frames."""
        lead = int(self.first_frame_alone)
        return (frames - lead) // self.temporal_stride + lead

    def tokens(self, bucket: Bucket) -> int:
        """Tokens of one clip: latent frames times pixels of a frame."""
        return self.latent_frames(bucket.frames) * bucket.height * bucket.width

    def batch_sizes(self, buckets: Sequence[Bucket], batch_size: int) -> list[int]:
        """Clips of a batch of each bucket, so that no batch has more than ``tokens_per_batch`` tokens.

        A batch then has more than ``tokens_per_batch`` less one clip, so the tokens of full batches differ by less than
        the largest clip's share of the budget. With ``step_times`` no batch takes longer than one of the largest.

        Raises:
            UserError: one clip alone has more, or a bucket is not in ``step_times``.
        """
        largest = max(buckets, key=self.tokens)
        budget = self.tokens_per_batch or batch_size * self.tokens(largest)
        if budget < self.tokens(largest):
            raise UserError(
                f"data.bucketing.tokens_per_batch={budget}: one clip of bucket {largest} has {self.tokens(largest)} "
                "tokens (latent frames x height x width). Raise it, or lower data.bucketing.max_tokens or max_frames"
            )
        if self.times is not None:
            return self.times.batch_sizes(buckets, largest, budget // self.tokens(largest))
        return [budget // self.tokens(bucket) for bucket in buckets]

    def assignment(self, index: ClipIndex) -> Assignment:
        """The bucket of every clip of an index."""
        return self.assign(*(index.numbers(name) for name in ("frames", "height", "width", "fps")))

    def assign(self, frames: np.ndarray, height: np.ndarray, width: np.ndarray, fps: np.ndarray) -> Assignment:
        """The bucket of every clip, given their frames, pixels and frames per second, each (clips,).

        Raises:
            UserError: there are more buckets than 32767.
        """
        codes = np.empty(len(frames), np.int16)
        numbers: dict[int, int] = {}
        fresh = count()
        for start in range(0, len(frames), CHUNK):
            part = slice(start, start + CHUNK)
            keys, places = np.unique(
                self._keys(frames[part], height[part], width[part], fps[part]), return_inverse=True
            )
            for key in keys.tolist():
                if key not in numbers:
                    numbers[key] = key if key < 0 else next(fresh)
            if len(numbers) > MAX_BUCKETS - len(REASONS):
                raise UserError(
                    f"data.bucketing: more than {MAX_BUCKETS} buckets; give data.bucketing.ratios, or raise stride, "
                    "temporal_stride or latent_multiple"
                )
            codes[part] = np.array([numbers[key] for key in keys.tolist()], np.int16)[places]
        return _sorted_assignment(numbers, codes)

    def _keys(self, frames: np.ndarray, height: np.ndarray, width: np.ndarray, fps: np.ndarray) -> np.ndarray:
        """One number per clip that stands for its bucket, or ``-1 - r`` for ``REASONS[r]``."""
        kept = self._kept_frames(frames.astype(np.int64), fps)
        rows, columns = self._sizes(height.astype(np.int64), width.astype(np.int64))
        keys = kept << 40 | rows << 20 | columns
        keys[(kept < 1) | (kept < self.min_frames)] = -1
        keys[(rows * columns < max(1, self.min_tokens or 0)) & (keys >= 0)] = -2
        if self.max_aspect is not None:
            longer, shorter = np.maximum(height, width), np.minimum(height, width)
            keys[(longer > self.max_aspect * shorter) & (keys >= 0)] = -3
        return keys

    def step_at(self, fps: Any) -> Any:
        """Distance in source frames of kept frames, for a source rate or an array of them."""
        if self.fps is None:
            return self.frame_step or 1
        return np.maximum(1, np.rint(np.nan_to_num(np.asarray(fps, float)) / self.fps)).astype(np.int64)

    def _kept_frames(self, frames: np.ndarray, fps: np.ndarray) -> np.ndarray:
        """The most frames that the autoencoder takes; 0 or less where there are too few for any."""
        kept = (frames - 1) // self.step_at(fps) + 1
        if self.max_frames is not None:
            kept = np.minimum(kept, self.max_frames)
        lead = int(self.first_frame_alone)
        latent = (kept - lead) // self.temporal_stride + lead
        latent -= latent % self.latent_multiple
        return np.where(latent > 0, (latent - lead) * self.temporal_stride + lead, 0)

    def _sizes(self, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Height and width in pixels; 0 where the clip covers no bucket."""
        assert self.max_tokens is not None
        if self.ratios is None:
            shrink = np.sqrt(np.minimum(1, self.max_tokens / np.maximum(height * width, 1)))
            whole = ((side * shrink).astype(np.int64) for side in (height, width))
            rows, columns = (side - side % self.stride for side in whole)
            return rows, columns
        shape = np.log(np.maximum(height, 1) / np.maximum(width, 1))
        rows, columns, best = np.zeros_like(height), np.zeros_like(width), np.full(len(height), np.inf)
        for h, w in self.ratios:
            scale = np.minimum(height // (h * self.stride), width // (w * self.stride))
            scale = np.minimum(scale, self._largest_scale((h, w)))
            distance = np.where(scale > 0, np.abs(shape - np.log(h / w)), np.inf)
            nearer = distance < best
            rows[nearer], columns[nearer] = scale[nearer] * h * self.stride, scale[nearer] * w * self.stride
            best[nearer] = distance[nearer]
        return rows, columns


@dataclass(frozen=True)
class SingleShape(Bucketing):
    """The case of one bucket: all clips are cut to one shape, whatever their own, and shorter ones are left out.

    Args:
        shape: frames, and pixels of height and width.
    """

    shape: Bucket = field(kw_only=True)
    trains_short: ClassVar[bool] = False

    @property
    @override
    def recorded(self) -> None:
        return None

    @property
    @override
    def cache_key(self) -> dict[str, Any]:
        sizes = asdict(self.shape) | {"frame_stride": self.frame_step}
        return {f"data.{name}": size for name, size in sizes.items()}

    @property
    @override
    def summary(self) -> list[str]:
        return ["data.bucketing.max_tokens is not set: every clip is trained in one shape"]

    @override
    def assignment(self, index: ClipIndex) -> Assignment:
        return Assignment.same(self.shape, len(index))


LEAST = {
    "max_tokens": 1,
    "stride": 1,
    "max_frames": 1,
    "min_frames": 1,
    "temporal_stride": 1,
    "latent_multiple": 1,
    "frame_step": 1,
    "min_tokens": 0,
    "tokens_per_batch": 1,
    "min_clips": 0,
    "image_every": 2,
    "window": 1,
}


def _check_ranges(rule: Bucketing) -> None:
    for name, least in LEAST.items():
        value = getattr(rule, name)
        if value is not None and value < least:
            raise UserError(f"data.bucketing.{name}={value}: it must be {least} or more")
    for name in ("fps", "max_aspect"):
        value = getattr(rule, name)
        if value is not None and not value > (0 if name == "fps" else 1):
            raise UserError(f"data.bucketing.{name}={value}: it must be more than {0 if name == 'fps' else 1}")
    if rule.tail not in TAILS:
        raise UserError(f"data.bucketing.tail={rule.tail}: it must be one of {', '.join(TAILS)}")
    bad = {name: weight for name, weight in (rule.weights or {}).items() if not weight >= 0}
    if bad:
        raise UserError(f"data.bucketing.weights={bad}: a weight must be 0 or more")


def _sorted_assignment(numbers: Mapping[int, int], codes: np.ndarray) -> Assignment:
    """Buckets in sorted order, whatever the order of the clips."""
    keys = sorted(key for key in numbers if key >= 0)
    place = np.empty(len(keys) + len(REASONS), np.int16)
    place[[numbers[key] for key in keys]] = np.arange(len(keys))
    place[len(keys) :] = -1 - np.arange(len(REASONS))[::-1]
    for start in range(0, len(codes), CHUNK):  # in place: negative codes count from the end, where they find themselves
        codes[start : start + CHUNK] = place[codes[start : start + CHUNK]]
    side = (1 << 20) - 1
    return Assignment(tuple(Bucket(key >> 40, key >> 20 & side, key & side) for key in keys), codes)
