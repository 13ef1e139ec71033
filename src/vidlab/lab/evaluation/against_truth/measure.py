"""A run, and others to compare it with, measured on its held-out clips."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from vidlab.clip import ClipBatch
from vidlab.data.module import ClipDataModule
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import contact_sheet
from vidlab.errors import UserError
from vidlab.files import written_aside
from vidlab.lab.cli.progress import bar
from vidlab.lab.compose import build_data
from vidlab.lab.evaluation.against_truth.made import (
    Clips,
    counted_frames,
    known_frames,
    made_clips,
    without_a_model,
)
from vidlab.lab.evaluation.against_truth.scores import METRICS, TRUTH, Scores, check_metrics
from vidlab.lab.evaluation.against_truth.table import table_of
from vidlab.lab.evaluation.run import set_size
from vidlab.lab.loading import load_pipeline, load_with_config
from vidlab.pipelines.video_pipeline import VideoPipeline

MODEL = "the model"
SHOWN = 4  # clips on a sheet


@dataclass(frozen=True)
class AgainstTruthSettings:
    """What is measured.

    Args:
        run: of a model that is given frames: a run folder, a checkpoint, an MLflow run id or ``last``.
        against: other runs by the names they have in the table, each given the frames it was trained with, if any.
        name: the experiment in which ``last`` looks.
        clips: held-out clips.
        frames: of a clip; None is as trained. Only a temporal upsampler takes longer ones.
        metrics: of ``METRICS``; None is all that the clips are long enough for.
        steps, guidance: of sampling, the latter a choice's name for ``run`` alone; None is as trained.
        batch_size: clips made at once.
        sheet: where a picture of the first clips goes; None makes none.
    """

    run: str
    against: dict[str, str] = field(default_factory=dict)
    name: str = "vidlab"
    clips: int = 64
    frames: int | None = None
    metrics: Sequence[str] | None = None
    steps: int | None = None
    guidance: str | None = None
    batch_size: int = 16
    sheet: Path | None = None


def measure(asked: AgainstTruthSettings) -> str:
    """The table of a run against the truth, on held-out clips of its own data.

    Raises:
        UserError: no such run, one that is given no frames, or metrics that do not fit.
    """
    pipeline, trained = load_with_config(asked.run, name=asked.name, key="run")
    pipeline = pipeline.using(guidance=asked.guidance, steps=asked.steps)
    frames, *size = pipeline.clip_shape
    frames = asked.frames or frames
    given = known_frames(pipeline.conditioning, frames)
    if not given.any():
        raise UserError(
            f"run={asked.run}: this model is given no frames. Train one with conditioning=frame_replacement."
        )
    metrics = asked.metrics or [name for name in METRICS if name != "fvd" or frames >= 16]
    check_metrics(metrics, frames)
    models = {MODEL: pipeline} | {
        title: load_pipeline(run, name=asked.name, key="against").using(steps=asked.steps)
        for title, run in asked.against.items()
    }
    data = held_out(trained, (frames, *size), asked)
    scores, shown, clips = Scores(metrics, counted_frames(given)), list[dict[str, Clips]](), 0
    with bar("clips", min(asked.clips, len(data.data.val))) as advance:
        for batch in data.val_dataloader():
            truth = batch.pixels.float()
            made = _made(models, batch, frames) | dict(without_a_model(truth, given))
            scores.add(truth, made)
            shown += [{TRUTH: truth, **made}] if not shown else []
            clips += len(batch)
            advance(len(batch))
    if asked.sheet is not None:
        write_sheet(asked.sheet, shown[0])
    return table_of(scores, MODEL, [how for how in shown[0] if how not in (MODEL, TRUTH)], clips)


def _made(models: dict[str, VideoPipeline], batch: ClipBatch, frames: int) -> dict[str, Clips]:
    truth = batch.pixels.float()
    return {
        how: made_clips(model, truth, batch.captions, batch.keys, known_frames(model.conditioning, frames))
        for how, model in models.items()
    }


def held_out(trained: DictConfig, shape: tuple[int, ...], asked: AgainstTruthSettings) -> ClipDataModule:
    """The first held-out clips of a run's data, at a size."""
    set_size(trained.data, (shape[0], shape[1], shape[2]))
    trained.data.val_clips, trained.data.batch_size, trained.data.num_workers = asked.clips, asked.batch_size, 0
    data = build_data(trained)
    assert isinstance(data, ClipDataModule)
    data.prepare_data()
    data.setup("validate")
    return data


def write_sheet(path: Path, clips: dict[str, Clips]) -> None:
    """A picture of the first clips: the truth and below it each way they were made."""
    videos, labels = [], []
    for number in range(min(SHOWN, len(clips[TRUTH]))):
        for how, made in clips.items():
            videos.append(to_frames(made[number].clamp(-1, 1)))
            labels.append(how)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        Image.fromarray(contact_sheet(np.stack(videos), labels)).save(aside, "PNG")
