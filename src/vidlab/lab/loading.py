"""From a run, a checkpoint or an exported folder to the model that it holds, and to what makes its videos."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vidlab.autoencoders.streaming import check_chunk
from vidlab.command_line import command, setting
from vidlab.errors import UserError
from vidlab.lab.cli.composed import compose
from vidlab.lab.cli.error_messages import choices_among, did_you_mean
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.compose import build_module
from vidlab.lab.ema.reconstruction import with_average
from vidlab.lab.exported import load_stored
from vidlab.lab.rebuilding import no_larger_than, rebuilding
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import Allowed, trained_config
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.training.video_diffusion import VideoDiffusion

SIZES = ("frames", "height", "width")
TRACKING = "sqlite:///mlflow.db"


@dataclass(frozen=True)
class LoadSettings:
    """What is asked of a model when it is rebuilt, where it wins over what it was trained with.

    Args:
        weights: ``ema`` or ``raw``.
        tracking_uri: where MLflow keeps its runs.
        frames, height, width: of a clip in pixels.
        steps: of the sampler.
        sampler, guidance: configurations.
        ema_length: sigma_rel of the average, made of what callbacks.post_hoc_ema has stored; None is the checkpoint's.
        image_model: the frozen image model of a model that has one, in place of that it was trained on: the same at
            another place, or another of the same structure.
    """

    weights: str = "ema"
    tracking_uri: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    sampler: Any = None
    guidance: Any = None
    ema_length: float | None = None
    image_model: str | None = None

    @classmethod
    def of(cls, cfg: DictConfig | Mapping[str, Any]) -> "LoadSettings":
        """The settings of a command that has them all or some."""
        return cls(**{name: cfg[name] for name in cls.__dataclass_fields__ if cfg.get(name) is not None})


def load_pipeline(
    reference: str | Path = "last",
    settings: LoadSettings | None = None,
    name: str = "vidlab",
    allow: Sequence[str] = (),
    key: str = "checkpoint",
) -> VideoPipeline:
    """What makes videos of a trained model, on the CPU.

    Args:
        reference: ``last``, a run folder, a checkpoint file, an MLflow run id or an exported folder.
        settings: what wins over what it was trained with.
        name: the experiment in which ``last`` looks.
        allow: the user's own classes that the file may name.
        key: of a command's setting, for messages.

    Raises:
        UserError: nothing is there, it is damaged or of an autoencoder, or names a class that is not allowed.
    """
    return load_with_config(reference, settings, name, allow, key)[0]


def load_with_config(
    reference: str | Path = "last",
    settings: LoadSettings | None = None,
    name: str = "vidlab",
    allow: Sequence[str] = (),
    key: str = "checkpoint",
) -> tuple[VideoPipeline, DictConfig]:
    """As ``load_pipeline``, and the configuration that the model was trained with."""
    settings = settings or LoadSettings(tracking_uri=TRACKING)
    run = resolve_run(str(reference), RUNS, name, settings.tracking_uri, key=key, exports=True)
    state = load_stored(run.checkpoint, settings.weights)
    if settings.ema_length is not None:
        state = with_average(state, run.folder, settings.ema_length, settings.weights, run.checkpoint)
    trained = trained_config(state, run.checkpoint, Allowed.of(allow))
    pipeline = module_of(state, trained, run.checkpoint, settings).pipeline
    stride = trained.data.get("frame_stride", 1)
    return replace(pipeline, frame_stride=stride, source=str(run.checkpoint), make_choice=make_choice), trained


def load(
    reference: str | Path = "last",
    *,
    weights: str = "ema",
    device: str | None = None,
    name: str = "vidlab",
    tracking_uri: str = TRACKING,
    allow: Sequence[str] = (),
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    frames_at_once: int | None = None,
) -> VideoPipeline:
    """A trained model, ready to make videos: ``vidlab.load("last")("a blue circle moving right").save("x.mp4")``.

    Args:
        reference: ``last``, a run folder, a checkpoint file, an MLflow run id or an exported folder.
        weights: ``ema`` (averaged) or ``raw``.
        device: where the networks go; None is the CPU.
        name: the experiment in which ``last`` looks.
        tracking_uri: where MLflow keeps its runs.
        allow: your own classes that the file may name, by exact dotted name.
        frames: of a clip; None is as trained.
        height: of a clip in pixels; None is as trained.
        width: of a clip in pixels; None is as trained.
        frames_at_once: frames that the autoencoder decodes at a time: long clips in bounded memory; None is all.

    Raises:
        UserError: nothing is there, it is damaged or of an autoencoder, or names a class that is not allowed.
    """
    check_chunk(frames_at_once)
    settings = LoadSettings(weights, tracking_uri, frames, height, width)
    pipeline = load_pipeline(reference, settings, name, allow, key="load")
    pipeline = replace(pipeline, frames_at_once=frames_at_once)
    return pipeline if device is None else pipeline.to(device)


def make_choice(group: str, name: str) -> Any:
    """The object of a choice of the shipped configuration, such as ``sampler`` and ``heun``.

    Raises:
        UserError: there is none of that name.
    """
    known = choices_among(path.stem for path in (config_folder() / group).glob("*.yaml"))
    if name not in known:
        raise UserError(f"{group}={name}: no such choice.{did_you_mean(name, known, 'Choices')}")
    node = compose(f"{group}={name}", "prompt=x", program="generate")[group]
    return instantiate(node, group)


def module_of(state: dict[str, Any], trained: DictConfig, checkpoint: Path, settings: LoadSettings) -> VideoDiffusion:
    """Rebuild the trained module from its checkpoint alone, in evaluation mode.

    Args:
        state: the checkpoint's content.
        trained: its configuration, from ``trained_config``.
        checkpoint: its file.
        settings: what wins over what it was trained with.

    Raises:
        UserError: a checkpoint of an autoencoder, or a setting it cannot take.
    """
    trained = copy.deepcopy(trained)
    if not trained.get("model"):
        raise UserError(
            f"{checkpoint} is of an autoencoder, which generates nothing. See what it reconstructs with "
            f"{command('evaluate.py', setting('autoencoders', [checkpoint]))}"
        )
    if settings.weights not in ("ema", "raw"):
        raise UserError(f"weights={settings.weights}: choose ema or raw.")
    trained.logger = {"uri": settings.tracking_uri}  # a file names no store for this command to ask
    with rebuilding(checkpoint):
        for name in SIZES:
            trained.data[name] = getattr(settings, name) or trained.data[name]
        for group in ("sampler", "guidance"):
            chosen = getattr(settings, group)
            trained[group] = trained[group] if chosen is None else chosen
        if settings.steps is not None:
            trained.sampler.steps = settings.steps
        if settings.image_model is not None:
            _take_image_model(trained, settings.image_model)
        module = build_module(trained, partial(no_larger_than, state["state_dict"], checkpoint))
        module.configure_model()
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
        if settings.weights == "ema" and not state.get("averaged"):
            _take_average(module, state, checkpoint)
        found: VideoDiffusion = module.eval()
        return found


def _take_image_model(trained: DictConfig, image_model: str) -> None:
    backbone = trained.model.backbone
    if "image_model" not in backbone:
        raise UserError(f"image_model={image_model}: the model has no frozen image model. Leave image_model out.")
    before, text = str(backbone.image_model.path), trained.text_encoder
    if text.get("path") == str(Path(before) / "text_encoder") and (Path(image_model) / "text_encoder").is_dir():
        text.path = str(Path(image_model) / "text_encoder")  # each image model knows its own
    trained.model.image_model = backbone.image_model.path = image_model
    backbone.other_image_model = True


@torch.no_grad()
def _take_average(module: VideoDiffusion, state: dict[str, Any], checkpoint: Path) -> None:
    if not state.get("ema"):
        raise UserError(f"{checkpoint} holds no averaged weights (trained without callbacks.ema). Use weights=raw.")
    parameters = dict(module.named_parameters())
    for name, value in state["ema"].items():
        parameters[name].copy_(value)
