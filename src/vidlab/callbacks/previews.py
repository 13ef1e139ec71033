"""Videos made during training from fixed prompts and fixed noise, to be looked at."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vidlab.callbacks.ema import EMA
from vidlab.data.held_out import held_out_structure
from vidlab.data.module import ClipDataModule
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import contact_sheet, grid_mp4, write_png
from vidlab.errors import UserError
from vidlab.parallel.shards import is_shard
from vidlab.randomness import KeyedRNG
from vidlab.structure import StructureSignal
from vidlab.training.step_interval import StepInterval
from vidlab.training.video_diffusion import VideoDiffusion

log = logging.getLogger(__name__)


@runtime_checkable
class MediaLogger(Protocol):
    """A logger that takes pictures and videos."""

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Store an image (H, W, 3) uint8 for a step."""
        ...

    def log_video(self, key: str, path: Path, step: int) -> None:
        """Store an mp4 for a step."""
        ...


class Previews(Callback):
    """Every ``every_n_steps`` and at the end: one video per prompt, as a contact sheet and an mp4.

    The weights are the averaged ones when an EMA callback is present. Noise is keyed by prompt and never changes, so
    sheets of different steps show the same videos growing. A model of ``conditioning=structure`` is told that of the
    first held-out clips, whatever the prompts.

    Args:
        folder: where ``step-000100.png`` and ``.mp4`` are written.
        every_n_steps: interval in optimizer steps; null leaves only the end.
        prompts: fixed prompts; null takes captions of the first held-out clips.
        count: how many prompts to take when ``prompts`` is null.
        seed: seed of the noise.
        fps: frames per second of the mp4.

    Raises:
        UserError: for an interval below 1.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | None,
        prompts: Sequence[str] | None = None,
        count: int = 6,
        seed: int = 0,
        fps: float = 8.0,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.previews.every_n_steps={every_n_steps} must be at least 1.")
        self.folder = Path(folder)
        self._interval = StepInterval(every_n_steps)
        self.prompts = None if prompts is None else list(prompts)
        self.count = count
        self.seed = seed
        self.fps = fps
        self.latest: Path | None = None
        self._last_step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Preview at the interval, once per optimizer step."""
        if self._interval.due(trainer.global_step):
            self._preview(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Preview the final weights."""
        self._preview(trainer, pl_module)

    def _preview(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._last_step or step == 0:
            return
        together = any(map(is_shard, pl_module.parameters()))  # no process can then compute without the others
        if not (trainer.is_global_zero or together):
            return
        self._last_step = step
        assert isinstance(pl_module, VideoDiffusion)
        prompts = self._prompts(trainer)
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
        pl_module.eval()
        with ema.averaged(pl_module) if ema else nullcontext(), trainer.precision_plugin.forward_context():
            structure = held_out_structure(
                pl_module.conditioning, self._data(trainer), range(len(prompts)), pl_module.device
            )
            videos = self.videos(pl_module, prompts, structure)
        pl_module.train()
        if trainer.is_global_zero:
            self._write(trainer, videos, prompts, step)

    def _prompts(self, trainer: Trainer) -> list[str]:
        if self.prompts is None:
            self.prompts = self._data(trainer).held_out_captions(self.count)
        return self.prompts

    def _data(self, trainer: Trainer) -> ClipDataModule:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ClipDataModule)
        return datamodule

    def videos(
        self, module: VideoDiffusion, prompts: Sequence[str], structure: StructureSignal | None = None
    ) -> np.ndarray:
        """Videos (N, T, H, W, 3) uint8 from noise keyed by position and prompt; ``structure`` is what they follow."""
        keys = tuple(f"{index}:{prompt}" for index, prompt in enumerate(prompts))
        draw = KeyedRNG(self.seed, keys, (0,) * len(keys))
        pixels = module.pipeline.clips(prompts, draw, structure=structure).float().cpu()
        return np.stack([to_frames(video) for video in pixels])

    def _write(self, trainer: Trainer, videos: np.ndarray, prompts: Sequence[str], step: int) -> None:

        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(videos, labels=list(prompts))
        self.latest = self.folder / f"step-{step:06d}.png"
        write_png(self.latest, sheet)
        movie = self.latest.with_suffix(".mp4")
        grid_mp4(movie, videos, self.fps)
        for logger in trainer.loggers:
            if isinstance(logger, MediaLogger):
                logger.log_image("previews", sheet, step)
                logger.log_video("previews", movie, step)
