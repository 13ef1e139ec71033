"""Clips to rows of features, and the metrics that compare sets of such rows."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.errors import DataError
from vidlab.metrics.base import Batch, ReferenceKind, VideoMetric
from vidlab.metrics.intervals import subsampled
from vidlab.metrics.results import Floor, MetricResult
from vidlab.perceptual.i3d import CLASSES, load_i3d
from vidlab.perceptual.inception import FEATURES, load_inception
from vidlab.perceptual.resize import Filter, resize_frames, resize_videos
from vidlab.randomness import generator

_FLOOR_SPLITS = 5
_REMEMBERED = 2  # a batch of clips and its reference


def fingerprint(network: nn.Module) -> str:
    """Eight hexadecimal digits that differ for other weights."""
    digest = sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


class Extractor:
    """A frozen network that turns each clip (3, T, H, W) into rows of ``width`` numbers.

    It remembers what it answered last, so several metrics that share one extractor cost one pass.

    Args:
        network: the network, moved to where the clips are.
        name: what to call it in results.
        width: numbers per row.
        size: height and width in pixels that clips are brought to.
        resize: the filter.
        batch: clips per pass.
    """

    def __init__(
        self, network: nn.Module, name: str, width: int, size: int, resize: Filter = "bilinear", batch: int = 4
    ) -> None:
        self.network, self.name, self.width, self.size, self.resize, self.batch = (
            network.eval(), name, width, size, resize, batch
        )  # fmt: skip
        self.weights = fingerprint(network)
        self._last: list[tuple[Tensor, int, Tensor]] = []

    @property
    def description(self) -> str:
        """The resize as results state it."""
        return f"{self.resize} to {self.size} x {self.size}"

    def __call__(self, videos: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B F D"]:
        """``F`` rows for each clip, float32, on the clips' device."""
        version = 0 if videos.is_inference() else videos._version
        for seen, at, answer in self._last:
            same_pixels = seen.data_ptr() == videos.data_ptr() and seen.stride() == videos.stride()
            if same_pixels and at == version and seen.shape == videos.shape and seen.dtype == videos.dtype:
                return answer
        self.network.to(videos.device)
        with torch.inference_mode(), torch.autocast(videos.device.type, enabled=False):
            answer = torch.cat([self.rows(part.float()) for part in videos.split(self.batch)])
        answer = answer.clone()  # outside inference mode: an ordinary tensor
        self._last = [*self._last, (videos, version, answer)][-_REMEMBERED:]
        return answer

    def rows(self, videos: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B F D"]:
        """One row per clip."""
        return self.network(resize_videos(videos, self.size, self.size, self.resize))[:, None]

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without memory."""
        return {**self.__dict__, "_last": []}


class FrameExtractor(Extractor):
    """One row per frame, from a network of images."""

    def rows(self, videos: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B F D"]:
        """One row per frame."""
        clips, _, frames = videos.shape[:3]
        images = resize_frames(videos.transpose(1, 2).flatten(0, 1), self.size, self.size, self.resize)
        return self.network(images).view(clips, frames, -1)


def i3d_extractor(
    weights: str = "asset:i3d-kinetics-400.ckpt", resize: Filter = "bilinear", batch: int = 4
) -> Extractor:
    """I3D's 400 logits at 224 x 224, the features of FVD; ``weights`` as in ``load_i3d``."""
    return Extractor(load_i3d(weights), "I3D Kinetics-400 logits", CLASSES, 224, resize, batch)


def inception_extractor(
    weights: str = "asset:inception-2048.pt", resize: Filter = "bilinear", batch: int = 4
) -> FrameExtractor:
    """Inception's 2048 features of each frame at 299 x 299, those of FID; ``weights`` as in ``load_inception``."""
    return FrameExtractor(load_inception(weights), "Inception 2048", FEATURES, 299, resize, batch)


def share_extractors(metrics: Mapping[str, VideoMetric]) -> None:
    """Let metrics with equal extractors (network, weights, size, filter) use one: a batch then passes it once."""
    known: dict[tuple[str, str, str], Extractor] = {}
    for metric in metrics.values():
        if isinstance(metric, FeatureMetric):
            own = metric.extractor
            metric.extractor = known.setdefault((own.name, own.weights, own.description), own)


class FeatureMetric(VideoMetric):
    """A metric of the features of a whole set of clips.

    Args:
        extractor: clips to features.
        frames, stride, seed: as for every metric.
    """

    def __init__(self, extractor: Extractor, frames: int | None = None, stride: int = 1, seed: int = 0) -> None:
        super().__init__(frames, stride, seed)
        self.extractor = extractor
        self._add_rows("features", (extractor.width,))

    def settings(self) -> Mapping[str, str]:
        """The network and its weights."""
        return {"features": self.extractor.name, "weights": self.extractor.weights}

    def _take(self, batch: Batch) -> None:
        self._append("features", batch.videos)
        self.keys.append(batch.keys)

    def _append(self, name: str, videos: Tensor) -> None:
        found = self.extractor(videos)
        if not found.isfinite().all():
            raise DataError(f"{self.name}: the features of a clip are not finite; the network's weights are damaged.")
        getattr(self, name).append(found.flatten(0, 1).to(self.device))

    def _sets(self, name: str, keys: str) -> Tensor:
        """(N, F, D) by growing key; F is 1 or the number of frames."""
        order, rows = self._order(keys), self._rows(name)
        total = len(self._rows(keys))
        return rows.view(total, -1, rows.shape[-1])[order] if total else rows[:, None]


class SetDistance(FeatureMetric):
    """A distance between the features of generated clips and of a reference set.

    Reference clips come with ``update(reference=...)``, any number of them, or with ``add_reference``.

    Args:
        extractor, frames, stride, seed: as for every metric of features.
        draws: how many halves are drawn for the interval, see ``vidlab.metrics.intervals.subsampled``.
    """

    reference_kind: ClassVar[ReferenceKind] = "set"
    higher_is_better = False
    biased: ClassVar[bool] = True
    enough: ClassVar[int] = 2048  # clips, of the usual protocol
    reference_keys: list[Tensor]

    def __init__(
        self, extractor: Extractor, frames: int | None = None, stride: int = 1, seed: int = 0, draws: int = 20
    ) -> None:
        super().__init__(extractor, frames, stride, seed)
        self.draws = draws
        self._add_rows("reference_features", (extractor.width,))
        self._add_set("reference_")

    @abstractmethod
    def distance(self, features: Float[Tensor, "n D"], reference: Float[Tensor, "m D"]) -> float:
        """The distance of two sets of rows."""

    def add_reference(self, videos: Tensor, keys: Sequence[str] | None = None) -> None:
        """Take in reference clips (R, 3, T, H, W) in [-1, 1] alone.

        Raises:
            DataError: as ``update``.
        """
        with torch.no_grad():
            self._take_reference(self._accept(videos, "reference", keys), self._hashed(keys, len(videos), "reference_"))

    def _take(self, batch: Batch) -> None:
        super()._take(batch)
        if batch.reference is not None:
            self._take_reference(batch.reference, self._reference_numbers(batch.reference, batch.keys))

    def _reference_numbers(self, reference: Tensor, keys: Tensor) -> Tensor:
        return self._hashed(None, len(reference), "reference_")

    def _take_reference(self, reference: Tensor, keys: Tensor) -> None:
        self._note("reference_", reference)
        self._append("reference_features", reference)
        self.reference_keys.append(keys)

    def _result(self) -> MetricResult:
        mine, real = self._sets("features", "keys"), self._sets("reference_features", "reference_keys")
        if len(mine) < 2 or len(real) < 2:
            raise DataError(
                f"{self.name} needs at least 2 clips and 2 reference clips, it was given {len(mine)} and {len(real)}."
            )
        value = self._between(mine, real)
        described = self._describe(value, len(mine))
        _, height, width = self._shape("reference_", len(real))
        interval = subsampled(
            lambda a, b: self._between(mine[a.to(mine.device)], real[b.to(real.device)]),
            value, len(mine), len(real), self.draws, self.seed,
        )  # fmt: skip
        floor = self._floor(real, min(len(mine), len(real) // 2))
        return replace(
            described,
            reference_clips=len(real),
            resize=self.extractor.description,
            settings={**described.settings, "reference resolution": f"{height} x {width}"},
            interval=interval,
            floor=floor,
            notes=self._notes(len(mine), len(real), floor),
        )

    def _between(self, clips: Tensor, reference: Tensor) -> float:
        return self.distance(clips.flatten(0, 1), reference.flatten(0, 1))

    def _floor(self, real: Tensor, size: int) -> Floor | None:
        """The distance of two disjoint parts of the reference, ``size`` clips each."""
        if size < 2:
            return None
        made = generator("floor", self.seed)
        total = 0.0
        for _ in range(_FLOOR_SPLITS):
            order = torch.randperm(len(real), generator=made).to(real.device)
            total += self._between(real[order[:size]], real[order[size : 2 * size]])
        return Floor(total / _FLOOR_SPLITS, size, _FLOOR_SPLITS)

    def _notes(self, clips: int, references: int, floor: Floor | None) -> tuple[str, ...]:
        notes: list[str] = []
        if self.biased and min(clips, references) < self.enough:
            notes.append(
                f"{self.name} falls as N grows and is usually given at N {self.enough}: compare it at equal N only"
            )
        if self.biased and floor is None:
            notes.append("too few reference clips to measure what sampling alone makes of it")
        if self.biased and floor is not None and floor.clips < clips:
            notes.append(f"the reference allows parts of {floor.clips} clips only; at N {clips} its floor is lower")
        return tuple(notes)
