"""Held-out clips beside what an autoencoder makes of them, to be looked at."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vidlab.callbacks.previews import MediaLogger
from vidlab.clip import ClipBatch
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import contact_sheet, grid_mp4, write_png
from vidlab.errors import UserError

NAMES = ("original", "reconstruction")
Video = UInt8[np.ndarray, "T H W 3"]


class Reconstructions(Callback):
    """At each validation after the first step: the first held-out clips, original and reconstruction side by side.

    A contact sheet has a row for each, one above the other; the mp4 shows them next to each other. Validation uses the
    averaged weights, and so do these.

    Args:
        folder: where ``step-000100.png`` and ``.mp4`` are written.
        count: how many clips.
        fps: frames per second of the mp4.

    Raises:
        UserError: ``count`` below 1, or a module that reconstructs nothing.
    """

    def __init__(self, folder: str, count: int = 4, fps: float = 8.0) -> None:
        if count < 1:
            raise UserError(f"callbacks.reconstructions.count={count} must be at least 1.")
        self.folder = Path(folder)
        self.count = count
        self.fps = fps
        self.latest: Path | None = None
        self._videos: list[Video] = []
        self._labels: list[str] = []

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._videos, self._labels = [], []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ClipBatch, *_: Any
    ) -> None:
        """Keep the clips that are still missing."""
        if not isinstance(outputs, dict) or "reconstruction" not in outputs:
            raise UserError(
                f"callbacks.reconstructions: {type(pl_module).__name__} reconstructs no clips. Use task=autoencoder, "
                "or set callbacks.reconstructions=null."
            )
        missing = self.count - len(self._videos) // 2
        pairs = zip(batch.pixels[:missing], outputs["reconstruction"][:missing], batch.captions, strict=False)
        for original, reconstruction, caption in pairs:
            self._videos += [to_frames(original.float().cpu()), to_frames(reconstruction.float().cpu())]
            self._labels += [f"{name}: {caption}" for name in NAMES]

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._videos or not trainer.is_global_zero or trainer.global_step == 0:
            return

        step = trainer.global_step
        self.folder.mkdir(parents=True, exist_ok=True)
        self.latest = self.folder / f"step-{step:06d}.png"
        sheet = contact_sheet(np.stack(self._videos), labels=self._labels)
        write_png(self.latest, sheet)
        movie = grid_mp4(self.latest.with_suffix(".mp4"), np.stack(self._videos), self.fps, columns=2)
        for logger in trainer.loggers:
            if isinstance(logger, MediaLogger):
                logger.log_image("previews", sheet, step)
                logger.log_video("previews", movie, step)
