"""What every metric of vidlab shares.

A metric is a ``torchmetrics.Metric``: it accumulates over batches, is reset, moved, checkpointed (``state_dict``) and
gathered over processes. All have one ``update``, so a program can feed a dictionary of them in one loop::

    for metric in metrics.values():
        metric.update(videos, reference=reals, captions=captions, keys=keys)
    results = {name: metric.result() for name, metric in metrics.items()}

Each takes what it needs and leaves the rest. ``compute`` gives the bare value, as a tensor; ``result`` gives a
``MetricResult`` with N, the settings, the interval, and the clips' scores where there are any.

``keys`` name the clips. With keys, a result does not depend on the order, the batches or the processes the clips came
in, a clip that came twice (as samplers of several processes pad) counts once, and two runs can be compared clip by
clip. Without keys, clips are numbered as they come.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from vidlab.errors import DataError, UserError
from vidlab.factors import Factors
from vidlab.metrics.checks import check_darkness, check_pairs, check_videos
from vidlab.metrics.intervals import bootstrap_mean
from vidlab.metrics.results import MetricResult
from vidlab.perceptual.resize import Filter, resize_videos
from vidlab.randomness import seed_of

ReferenceKind = Literal["none", "set", "paired"]
_FAR = 2.0  # larger than any pixel


@dataclass(frozen=True)
class Batch:
    """What ``update`` was given, checked, with the frames that are scored and keys as numbers."""

    videos: Tensor
    reference: Tensor | None
    captions: Sequence[str]
    keys: Tensor
    factors: Sequence[Factors | None] | None


class VideoMetric(Metric):
    """A score of a set of clips (B, 3, T, H, W) in [-1, 1].

    Args:
        frames: how many frames of each clip are scored, from the first on; None is all.
        stride: given frames per scored frame: 2 leaves every second frame out.
        seed: of the intervals' draws.

    Subclasses say: ``name``; ``reference_kind``, whether they compare with nothing, with a ``set`` of other clips, or
    with clips one to one (``paired``); ``needs_captions``, ``needs_factors``; ``minimum_frames``; ``higher_is_better``.

    Raises:
        UserError: fewer frames than the metric needs, or a stride below 1.
    """

    name: ClassVar[str]
    reference_kind: ClassVar[ReferenceKind] = "none"
    needs_captions: ClassVar[bool] = False
    needs_factors: ClassVar[bool] = False
    minimum_frames: ClassVar[int] = 1
    full_state_update = False
    is_differentiable = False

    shape_low: Tensor
    shape_high: Tensor
    darkest: Tensor
    keys: list[Tensor]

    def __init__(self, frames: int | None = None, stride: int = 1, seed: int = 0) -> None:
        super().__init__()
        if stride < 1 or (frames is not None and frames < self.minimum_frames):
            raise UserError(
                f"{self.name}: frames={frames}, stride={stride}: frames must be at least {self.minimum_frames} "
                "and stride at least 1."
            )
        self.frames, self.stride, self.seed = frames, stride, seed
        self._tails: dict[str, tuple[int, ...]] = {}
        self._add_set("")

    def update(
        self,
        videos: Shaped[Tensor, "..."],
        reference: Shaped[Tensor, "..."] | None = None,
        captions: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        factors: Sequence[Factors | None] | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            videos: the clips to score, (B, 3, T, H, W) in [-1, 1].
            reference: clips to compare with, in the same form; (B, ...) for paired metrics, any number for others.
            captions: one text per clip.
            keys: one name per clip, unique in the set.
            factors: what a rendered clip with each caption shows; None where nobody knows.

        Raises:
            DataError: clips that are malformed, too short, not finite, out of range or of another size than before.
            UserError: something that this metric needs is missing.
        """
        shown = self._accept(videos, self.name, keys)
        self._note("", shown)
        other = None if reference is None or self.reference_kind == "none" else self._accept(reference, "reference")
        if self.reference_kind == "paired":
            if other is None:
                raise UserError(f"{self.name} compares each clip with its own reference: give update(reference=...).")
            check_pairs(videos, reference)  # type: ignore[arg-type]
        if self.needs_captions and (captions is None or len(captions) != len(videos)):
            raise UserError(f"{self.name} needs one caption per clip: give update(captions=...).")
        with torch.no_grad():
            self._take(Batch(shown, other, captions or (), self._hashed(keys, len(videos)), factors))

    def compute(self) -> Tensor:
        """The value alone, as a scalar in float64."""
        return torch.tensor(self._result().value, dtype=torch.float64)

    def result(self) -> MetricResult:
        """The value of all clips of all processes with everything that belongs to it; every process must call it.

        Raises:
            DataError: no clip was given, or too few.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True):
            return self._result()

    def dimensions(self) -> Mapping[str, MetricResult]:
        """The parts of a value that has some, by name; every process must call it."""
        return {}

    def settings(self) -> Mapping[str, str]:
        """Everything else that changes the value, by name."""
        return {}

    @property
    def least_side(self) -> int:
        """Rows and columns that clips must have as they are given."""
        return 1

    @abstractmethod
    def _take(self, batch: "Batch") -> None:
        """Add a checked batch to the states."""

    @abstractmethod
    def _result(self) -> MetricResult:
        """The result of the (gathered) states."""

    def _describe(self, value: float, clips: int) -> MetricResult:
        """A result that holds what the states know about the clips."""
        frames, height, width = self._shape("", clips)
        size = (height, width)
        return MetricResult(
            self.name, value, self.higher_is_better, clips, None, frames, self.stride, size, "none", self.settings()
        )

    def _accept(self, videos: Tensor, role: str, keys: Sequence[str] | None = None) -> Tensor:
        """The frames to score of clips that are in order."""
        least = self.minimum_frames if self.frames is None else self.frames
        check_videos(videos, role, (least - 1) * self.stride + 1, keys or ())
        return videos[:, :, :: self.stride][:, :, : self.frames]

    def _add_set(self, prefix: str) -> None:
        """States of one set of clips: keys, size (which must be one) and darkest pixel."""
        self._add_rows(f"{prefix}keys", ())
        self.add_state(f"{prefix}shape_low", torch.full((3,), 1 << 30), "min", persistent=True)
        self.add_state(f"{prefix}shape_high", torch.zeros(3, dtype=torch.long), "max", persistent=True)
        self.add_state(f"{prefix}darkest", torch.tensor(_FAR), "min", persistent=True)

    def _note(self, prefix: str, videos: Tensor) -> None:
        """Remember the size and the darkest pixel of clips; refuse another size."""
        role, known = _role(self.name, prefix), getattr(self, f"{prefix}shape_high")
        shape = torch.tensor(videos.shape[2:], device=known.device)
        if int(known.max()) and not torch.equal(shape, known):
            raise DataError(
                f"{role}: clips of {_sizes(shape)} after clips of {_sizes(known)}; "
                "bring all to one size, or score them apart."
            )
        darkest = getattr(self, f"{prefix}darkest")
        darkest = torch.minimum(darkest, videos.detach().min().to(darkest))
        for name, value in (("shape_low", shape), ("shape_high", shape.clone()), ("darkest", darkest)):
            setattr(self, prefix + name, value)
        seen = sum(len(part) for part in getattr(self, f"{prefix}keys"))
        check_darkness(float(darkest), seen + len(videos), role)

    def _shape(self, prefix: str, clips: int) -> list[int]:
        """Frames, height and width of a set's clips, once every process has given its own."""
        low, high = (getattr(self, f"{prefix}shape_{end}") for end in ("low", "high"))
        if not torch.equal(low, high):
            raise DataError(f"{_role(self.name, prefix)}: the processes were given clips of different sizes.")
        check_darkness(float(getattr(self, f"{prefix}darkest")), clips, _role(self.name, prefix))
        return list(high.tolist())

    def _hashed(self, keys: Sequence[str] | None, count: int, prefix: str = "") -> Tensor:
        """Names as numbers that can be gathered; clips without names are numbered on each process."""
        if keys is not None and len(keys) != count:
            raise UserError(f"{self.name}: {len(keys)} keys for {count} clips.")
        if keys is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if distributed else 0
            start = sum(len(part) for part in getattr(self, f"{prefix}keys"))
            numbers = [(rank << 40) + start + n for n in range(count)]
        else:
            numbers = [key_number(key) for key in keys]
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _add_rows(self, name: str, tail: tuple[int, ...]) -> None:
        """A state that grows by rows of a given shape and is gathered by concatenation."""
        self._tails[name] = tail
        self.add_state(name, [], "cat", persistent=True)

    def _rows(self, name: str) -> Tensor:
        """A growing state as one tensor; empty where nothing came yet."""
        state = getattr(self, name)
        if isinstance(state, list):
            state = dim_zero_cat(state) if state else self._empty(name)
        return state

    def _empty(self, name: str) -> Tensor:
        dtype = torch.long if name.endswith("keys") else torch.float64 if name == "scores" else torch.float32
        return torch.zeros((0, *self._tails[name]), dtype=dtype, device=self.device)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Gather. A process without clips takes part with rows of the right shape, or the others would wait for it."""
        for name in self._tails:
            if not getattr(self, name):
                setattr(self, name, [self._empty(name)])
        super()._sync_dist(*args, **kwargs)

    def _order(self, name: str = "keys") -> Tensor:
        """Where the first row of each key stands, by growing key."""
        found = self._rows(name)
        # stable, so that of equal keys the first comes first
        ordered = torch.argsort(found, stable=True)
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        is_first[1:] = found[ordered][1:] != found[ordered][:-1]
        return ordered[is_first]


class ClipMetric(VideoMetric):
    """A metric that scores each clip by itself; its value is the mean over clips.

    Args:
        frames: as for every metric.
        stride: as for every metric.
        seed: as for every metric.
        size: (height, width) the clips are brought to before scoring; None scores them as given.
        resize: the filter.
        resamples: of the bootstrap over clips that gives the interval.
    """

    scores: list[Tensor]

    def __init__(
        self,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        size: Sequence[int] | None = None,
        resize: Filter = "bilinear_antialias",
        resamples: int = 1000,
    ) -> None:
        super().__init__(frames, stride, seed)
        self.size, self.resize, self.resamples = size, resize, resamples
        self._add_rows("scores", ())

    @abstractmethod
    def score(
        self,
        videos: Shaped[Tensor, "B 3 T H W"],
        reference: Shaped[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Shaped[Tensor, "B"]:
        """One number per clip."""

    def _take(self, batch: "Batch") -> None:
        reference = None if batch.reference is None else self._resized(batch.reference)
        scores = self.score(self._resized(batch.videos), reference, batch.captions)
        self.scores.append(scores.to(self.device, torch.float64))
        self.keys.append(batch.keys)

    def _resized(self, videos: Tensor) -> Tensor:
        return (
            videos.float()
            if self.size is None
            else resize_videos(videos.float(), self.size[0], self.size[1], self.resize)
        )

    def _result(self) -> MetricResult:
        order = self._order()
        if not len(order):
            raise DataError(f"{self.name}: no clip was given.")
        scores, keys = self._rows("scores")[order], self._rows("keys")[order]
        found = bootstrap_mean(scores.tolist(), self.resamples, seed=self.seed)
        described = self._describe(scores.mean().item(), len(order))
        how = "none" if self.size is None else f"{self.resize} to {self.size[0]} x {self.size[1]}"
        return replace(
            described,
            resize=how,
            interval=found.interval,
            keys=tuple(keys.tolist()),
            scores=tuple(scores.tolist()),
            notes=() if found.interval is not None else ("no interval: fewer than 2 clips",),
        )


def key_number(key: str) -> int:
    """The number that stands for a clip's name in ``MetricResult.keys``."""
    return seed_of("key", key)


def _role(name: str, prefix: str) -> str:
    return f"{name}: reference" if prefix else name


def _sizes(shape: Tensor) -> str:
    frames, height, width = shape.tolist()
    return f"{frames} frames of {height} x {width}"
