"""Metrics of generated videos every so many training steps, on a few prompts and clips."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from vidlab.callbacks.ema import EMA
from vidlab.conditioning.base import check_conditioning_frames
from vidlab.data.held_out import held_out_frames, held_out_structure
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipRow
from vidlab.data.video import to_frames, to_pixels
from vidlab.data.video.contact_sheets import write_playable_mp4
from vidlab.errors import UserError
from vidlab.metrics.base import VideoMetric
from vidlab.metrics.collection import AtHand, gathered, select
from vidlab.metrics.run_scores import SCORES, VIDEOS, add_scores, clip_scores, video_name
from vidlab.metrics.series import Series
from vidlab.parallel.shards import is_shard
from vidlab.randomness import KeyedRNG
from vidlab.training.step_interval import StepInterval
from vidlab.training.video_diffusion import VideoDiffusion


@runtime_checkable
class KeepsFiles(Protocol):
    """A logger that keeps files."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file inside ``folder`` of the run."""
        ...


@runtime_checkable
class Tagged(Protocol):
    """A logger that keeps what a name of a series stands for."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or replace tags of the run."""
        ...


log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Every ``every_n_steps`` and at the end: videos for held-out captions, scored.

    The score of every clip goes to ``scores.csv`` of the folder, and the videos of the last evaluation to ``videos``
    beside it, named by the held-out clip's key: runs of one data set have the same captions there, and those of one
    latent shape start from the same noise. Loggers that keep files get both at the end.

    The weights are the averaged ones when an EMA callback is present. Noise is keyed by clip, as in ``evaluate.py``,
    which gives the same values for the same number of videos. The videos are shared out among the processes; where
    those hold shards of the weights, one that has no videos left makes others, which nobody sees, as long as any is at
    work. A model of ``conditioning=structure`` is told the structure of each held-out clip.

    Args:
        metrics: by name; those that need real clips, or factors the data does not have, are left out with a message.
        every_n_steps: interval in optimizer steps; null leaves only the end.
        num_videos: held-out captions, the first ones.
        batch_size: videos made at once on each process.
        seed: of the noise.
        folder: where ``scores.csv`` and ``videos`` are written; null writes neither.
        fps: frames per second of the videos.
        conditioning_frames: first frames of the held-out clip that are given to a model that takes frames.

    Logs:
        eval/<series>/<metric> and, where there is an interval, its ends under eval-low and eval-high. The series names
        the number of videos, the sampler and the guidance, as ``evaluate.py`` does.

    Raises:
        UserError: a number below 1, or no metric that can be measured.
    """

    def __init__(
        self,
        metrics: Mapping[str, VideoMetric | None],
        every_n_steps: int | None,
        num_videos: int = 16,
        batch_size: int = 16,
        seed: int = 0,
        folder: str | None = None,
        fps: float = 8.0,
        conditioning_frames: int = 0,
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "num_videos": num_videos, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise UserError(f"callbacks.evaluation.{name}={value} must be at least 1.")
        self.metrics = dict(metrics)
        self._interval = StepInterval(every_n_steps)
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.seed = seed
        self.folder = None if folder is None else Path(folder)
        self.fps = fps
        self.conditioning_frames = conditioning_frames
        self._latest: dict[str, np.ndarray] = {}  # frames of this process's videos, by key
        self._usable: dict[str, VideoMetric] | None = None
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the metrics that can be measured; before the first validation, which comes before training.

        Raises:
            UserError: there is none, what is trained generates nothing, or it takes no frames and is to be given some.
        """
        from lightning.pytorch.utilities import rank_zero_info

        if self._usable is not None:
            return
        if not isinstance(pl_module, VideoDiffusion):
            raise UserError(
                "callbacks=[default,evaluation] scores generated videos, and an autoencoder generates none. Use "
                "callbacks=[default]: validations measure its reconstructions."
            )
        check_conditioning_frames(
            self.conditioning_frames, pl_module.conditioning, pl_module.clip_shape[0],
            name="callbacks.evaluation.conditioning_frames",
        )  # fmt: skip
        clips = self._clips(trainer)
        known = AtHand(pl_module.clip_shape[0], captions=True, factors=all(clip.factors for clip in clips))
        selection = select(self.metrics, known)
        told = "; ".join(f"{name}: {why}" for name, why in selection.left_out.items())
        if not selection.metrics:
            raise UserError(f"callbacks.evaluation: none of its metrics can be measured during training ({told}).")
        if told:
            rank_zero_info(f"callbacks.evaluation leaves out {told}")
        self._usable = selection.metrics

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Evaluate at the interval, once per optimizer step."""
        if self._interval.due(trainer.global_step):
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final weights, and keep their videos."""
        self._evaluate(trainer, pl_module)
        self._keep_videos(trainer)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step in (0, self._last_step):
            return
        self._last_step = step
        assert isinstance(pl_module, VideoDiffusion) and self._usable is not None
        for metric in self._usable.values():
            metric.reset()
        self._latest = {}
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
        clips = self._clips(trainer)
        pl_module.eval()
        with ema.averaged(pl_module) if ema else nullcontext(), trainer.precision_plugin.forward_context():
            self._score_own(trainer, pl_module, clips)
        pl_module.train()
        found = gathered(self._usable)
        for name, why in found.not_measured.items():
            log.warning("callbacks.evaluation: no %s at step %d: %s", name, step, why)
        series = self._series(trainer, pl_module, weights="raw" if ema is None else "ema")
        if self.folder is not None and trainer.is_global_zero:
            captions = {clip.key: clip.captions[0] for clip in clips}
            add_scores(self.folder / SCORES, clip_scores(step, series.name, captions, found.results))
        for logger in trainer.loggers:
            logger.log_metrics(series.scalars(found.results), step=step)
            if isinstance(logger, Tagged):
                logger.set_tags({f"vidlab.eval.{series.name}": series.text})

    def _score_own(self, trainer: Trainer, module: VideoDiffusion, clips: Sequence[ClipRow]) -> None:
        """Make and score this process's videos."""
        parts = list(_parts(range(len(clips))[trainer.global_rank :: trainer.world_size], self.batch_size))
        for part in parts:
            shown = [clips[place] for place in part]
            made = self._videos(trainer, module, shown, part)
            frames = {clip.key: to_frames(video) for clip, video in zip(shown, made, strict=True)}
            self._latest |= frames
            # as a file keeps them, so that evaluate.py finds the same
            self._score(torch.stack([to_pixels(video) for video in frames.values()]), shown)
        if any(map(is_shard, module.parameters())):  # no process can compute without the others
            most = len(list(_parts(range(len(clips))[:: trainer.world_size], self.batch_size)))  # of the first process
            for _ in range(most - len(parts)):
                self._videos(trainer, module, clips[:1], range(1))

    def _keep_videos(self, trainer: Trainer) -> None:
        """Every process writes its own into the folder that all share; the first one hands the files to loggers."""
        if self.folder is None:
            return
        for key, frames in self._latest.items():
            write_playable_mp4(self.folder / VIDEOS / video_name(key), frames, self.fps)
        trainer.strategy.barrier("videos of the evaluation")
        names = {video_name(clip.key) for clip in self._clips(trainer)}
        made = [path for name in sorted(names) if (path := self.folder / VIDEOS / name).is_file()]
        if trainer.is_global_zero and made:
            for logger in trainer.loggers:
                if isinstance(logger, KeepsFiles):
                    logger.log_artifact(self.folder / SCORES, "evaluation")
                    for path in made:
                        logger.log_artifact(path, f"evaluation/{VIDEOS}")

    def _series(self, trainer: Trainer, module: VideoDiffusion, weights: str) -> Series:
        data = trainer.datamodule  # type: ignore[attr-defined]
        others = {
            "seed": self.seed, "weights": weights, "clip_shape": module.clip_shape, "data": data.data.hash,
            "precision": trainer.precision, "structure": module.conditioning.tells_structure or None,
            "conditioning_frames": self.conditioning_frames or None,
        }  # fmt: skip
        return Series(len(self._clips(trainer)), module.sampler, module.guidance, others)

    def _clips(self, trainer: Trainer) -> list[ClipRow]:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ClipDataModule)
        clips = datamodule.data.shown
        return [clips.row(position) for position in range(min(self.num_videos, len(clips)))]

    def _videos(
        self, trainer: Trainer, module: VideoDiffusion, clips: Sequence[ClipRow], places: Sequence[int]
    ) -> Float[Tensor, "B 3 T H W"]:
        keys = tuple(clip.key for clip in clips)
        captions = [clip.captions[0] for clip in clips]
        draw, data = KeyedRNG(self.seed, keys, (0,) * len(keys)), trainer.datamodule  # type: ignore[attr-defined]
        structure = held_out_structure(module.conditioning, data, places, module.device)
        pixels = known = None
        if self.conditioning_frames:
            pixels, known = held_out_frames(data, places, self.conditioning_frames)
        return module.pipeline.clips(captions, draw, pixels, known, structure=structure).float().cpu()

    def _score(self, videos: Float[Tensor, "B 3 T H W"], clips: Sequence[ClipRow]) -> None:
        assert self._usable is not None
        for metric in self._usable.values():
            metric.update(
                videos,
                captions=[clip.captions[0] for clip in clips],
                keys=[clip.key for clip in clips],
                factors=[clip.factors for clip in clips],
            )


def _parts(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))
