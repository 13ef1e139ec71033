"""The image model that ``model.image_model`` asks for, as a folder: what it names, or one that is trained for it."""

import copy
import json
import logging
import os
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.assets import cache_folder
from vidlab.backbones.harivo.image_model import weights_digest
from vidlab.callbacks.ema import EMA
from vidlab.callbacks.progress import StepProgress
from vidlab.command_line import command
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.image_models.folder import TEXT, ImageModelRecord, write_image_model
from vidlab.lab.loading import LoadSettings, module_of
from vidlab.lab.runs.opening import in_words
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import Allowed, trained_config
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.video_diffusion import VideoDiffusion

log = logging.getLogger(__name__)

PLACE = "image_models"  # in the cache
SMALL = "harivo_image"
# Folders of Stable Diffusion, by the setting that may name them, and the classes that read them.
PARTS = (
    ("text_encoder", "path", "text_encoder"),
    ("text_encoder", "tokenizer", "tokenizer"),
    ("autoencoder", "path", "vae"),
)
FROZEN = ("vidlab.text.pretrained.PretrainedEncoder", "vidlab.autoencoders.image_vae.ImageVAE")
# What the image model of a run depends on, besides its own settings.
GROUPS = ("objective", "autoencoder", "text_encoder", "optimizer", "lr_schedule", "task")
# Of the data, what changes no picture.
NEUTRAL = ("num_workers", "cache_decoded_mb", "max_megapixels", "max_decoded_mb", "batch_size", "val_clips")


def provide_image_model(cfg: DictConfig, allow: tuple[str, ...] = ()) -> None:
    """Put the folder of the frozen image model in place of what ``model.image_model`` says; nothing for other models.

    A run is written once as a folder, by the digest of its weights. Without a value a small model is trained on single
    frames of the run's data, once for these settings. Where the text encoder was trained with it, it is taken and
    frozen too: the image model knows no other.

    Args:
        cfg: of a training run; ``model.image_model`` and ``text_encoder`` are changed.
        allow: the user's own classes that a run may name.

    Raises:
        UserError: nothing is there, or it is no image model.
    """
    model = cfg.get("model")
    if not model or "image_model" not in model:
        return
    if model.image_model is None:
        folder: str | Path = _trained_here(cfg)
    else:
        folder = _located(str(model.image_model), cfg, allow)
    record = ImageModelRecord.read(Path(folder)) if Path(folder).is_dir() else None
    check_objective(cfg, record, str(folder))
    with open_dict(cfg):
        model.image_model = str(folder)
        if record is not None and record.text_encoder is not None:
            cfg.text_encoder = {**record.text_encoder, "path": str(Path(folder) / TEXT)}
        elif Path(folder).is_dir():
            _take_parts(cfg, Path(folder))


def _take_parts(cfg: DictConfig, folder: Path) -> None:
    """Those of the folder, where a text tower, a tokenizer or an image autoencoder is asked for without a path."""
    for group, key, place in PARTS:
        node = cfg[group]
        if key in node and node[key] is None and node["_target_"] in FROZEN and (folder / place).is_dir():
            node[key] = str(folder / place)


def _located(reference: str, cfg: DictConfig, allow: tuple[str, ...]) -> str | Path:
    """A folder or file of a model as it is, by its absolute path; a hub id as it is; of a run, a folder made of it."""
    place = Path(reference).expanduser()
    whole = (place / "unet").is_dir() or (place / "config.json").is_file() or place.suffix == ".safetensors"
    if place.exists() and whole:
        return place.resolve()
    if not place.exists() and "/" in reference and not reference.startswith((".", "/", "~")) and place.suffix == "":
        return reference
    uri = cfg.get("logger", {}).get("uri")
    run = resolve_run(reference, RUNS, cfg.name, uri, key="model.image_model")
    return _from_run(run.checkpoint, allow)


def _from_run(checkpoint: Path, allow: tuple[str, ...]) -> Path:
    state = load_checkpoint(checkpoint)
    trained = trained_config(state, checkpoint, Allowed.of(allow))
    module = module_of(state, trained, checkpoint, LoadSettings("ema" if state.get("ema") else "raw"))
    text = OmegaConf.to_container(trained.text_encoder, resolve=True) if module.text_encoder.trainable else None
    steps = int(state.get("global_step", 0))
    record = ImageModelRecord(text, _count(module), steps, objective=_plain(trained.objective))  # type: ignore[arg-type]
    weights = module.denoiser.state_dict()
    if text is not None:
        weights |= module.text_encoder.state_dict(prefix="text_encoder.")
    folder = cache_folder() / PLACE / weights_digest(weights).hex()
    if not folder.is_dir():
        write_image_model(module, folder, record)
    return folder


def _trained_here(cfg: DictConfig) -> Path:
    """The folder of the small image model of these settings, trained where it is not kept from an earlier run."""
    if cfg.model.get("image_training") is None:
        raise UserError(
            "model.image_model is not set, and model.image_training=null trains none. Give a folder of Stable "
            "Diffusion 1.5, its .safetensors file, or a run of model=harivo_image data.images=true."
        )
    asked = _image_config(cfg)
    key = blake2b(json.dumps(_settings(asked), sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = cache_folder() / PLACE / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _refuse_several_processes()
            _train(asked, folder)
    record = ImageModelRecord.read(folder)
    assert record is not None and record.seconds is not None and record.training_flops is not None
    log.info(
        "the frozen image model is %s: %s parameters, trained for %d steps in %.0f s and %s FLOP, once for these "
        "settings and apart from this run's cost", folder, in_words(record.parameters), record.steps, record.seconds,
        in_words(record.training_flops),
    )  # fmt: skip
    return folder


def image_model_flops(cfg: DictConfig) -> dict[str, float]:
    """FLOPs of the one-time training of the image model that a run stands on, where there is one with a record."""
    folder = cfg.model.get("image_model") if cfg.get("model") else None
    record = ImageModelRecord.read(Path(str(folder))) if folder else None
    return {} if record is None or record.training_flops is None else {"image_model_flops": record.training_flops}


def _refuse_several_processes() -> None:
    """Processes that a launcher has started cannot wait for one of them to train alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "model.image_model is not set, and the small image model cannot be trained by processes that torchrun or a "
            f"cluster has launched. Train it first: {command('train.py', f'model={SMALL}', 'data.images=true')}, and "
            "give its run as model.image_model."
        )


def _image_config(cfg: DictConfig) -> DictConfig:
    """The training of the image model: this run's settings with another model, on single frames."""
    found = copy.deepcopy(cfg)
    small = OmegaConf.load(config_folder() / "model" / f"{SMALL}.yaml")
    assert isinstance(small, DictConfig)
    own: Any = OmegaConf.to_container(small.backbone)  # its sizes, at a scale, are those of this run
    backbone = {**own, **{size: cfg.model.backbone[size] for size in ("width", "depth", "heads")}}
    nothing = OmegaConf.load(config_folder() / "conditioning" / "none.yaml")
    with open_dict(found):
        found.model = {"name": SMALL, "token": cfg.model.token, "backbone": backbone}
        if (scale := cfg.model.get("scale", 1)) != 1:
            found.model.scale = scale  # for the learning rate
        found.losses, found.conditioning, found.callbacks = {}, nothing, {}
        found.trainer.max_steps = cfg.model.image_training.max_steps
        found.trainer.limit_val_batches = 0
        found.trainer.devices, found.trainer.strategy, found.trainer.num_nodes = 1, "auto", 1
        found.trainer.sequence_parallel = 1
        found.trainer.enable_checkpointing = False
        found.data.images, found.data.val_clips, found.data.cache = True, 0, None
        found.data.batch_size = cfg.model.image_training.batch_size
        found.seed = cfg.model.image_training.seed
    return found


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What the trained weights depend on."""
    whole = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(whole, dict)
    data = {name: value for name, value in whole["data"].items() if name not in NEUTRAL}
    steps, clips = cfg.trainer.max_steps, cfg.data.batch_size
    return {name: whole[name] for name in GROUPS} | {
        "model": whole["model"], "data": data, "seed": cfg.seed, "precision": cfg.precision, "steps": steps,
        "batch_size": clips,
    }  # fmt: skip


def _train(cfg: DictConfig, folder: Path) -> None:
    steps = cfg.trainer.max_steps
    log.info(
        "model.image_model is not set: a small image model is trained first, %d steps of %d pictures, and kept. To "
        "train one yourself: %s", steps, cfg.data.batch_size,
        command("train.py", f"model={SMALL}", "data.images=true"),
    )  # fmt: skip
    seed_everything(cfg.seed, workers=True, verbose=False)
    module, data = build_module(cfg), build_data(cfg)
    assert isinstance(module, VideoDiffusion) and isinstance(data, ClipDataModule)
    average = EMA()
    trainer = build_trainer(cfg, False)
    trainer.callbacks += [average, StepProgress()]  # type: ignore[attr-defined]
    started = time.monotonic()
    trainer.fit(module, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    text = OmegaConf.to_container(cfg.text_encoder, resolve=True) if module.text_encoder.trainable else None
    flops = float(module.cost().training_flops) * cfg.data.batch_size * trainer.world_size * steps
    about = seconds, flops, _plain(cfg.objective)
    record = ImageModelRecord(text, _count(module), steps, *about)  # type: ignore[arg-type]
    with average.averaged(module):
        write_image_model(module.eval(), folder, record)


def check_objective(cfg: DictConfig, record: ImageModelRecord | None, origin: str) -> None:
    """Refuse to freeze an image model that predicts something else than the video model is trained for.

    Args:
        cfg: of a training run.
        record: of the image model; None for one that was not trained here, taken for a Stable Diffusion.
        origin: where it is, for the message.

    Raises:
        UserError: naming both.
    """
    own = _learned(_plain(cfg.objective))
    if record is None:
        if own.get("schedule", "").rpartition(".")[2] != "VariancePreserving" or "X0" in own.get(
            "parameterization", ""
        ):
            raise UserError(
                f"model.image_model={origin} is taken for a Stable Diffusion, which predicts noise, and this run's "
                f"objective is {_in_words(own)}. Add objective=epsilon_scaled_linear, as model=paper/harivo has it."
            )
        return
    if record.objective is not None and (theirs := _learned(record.objective)) != own:
        raise UserError(
            f"model.image_model={origin} was trained for {_in_words(theirs)}, and this run's objective is "
            f"{_in_words(own)}. Give both the same objective=."
        )


def _learned(objective: Mapping[str, Any]) -> dict[str, str]:
    """The classes that decide what a model reads and predicts."""
    return {part: str(objective[part]["_target_"]) for part in ("schedule", "parameterization") if part in objective}


def _in_words(learned: Mapping[str, str]) -> str:
    return " on ".join(learned[part].rpartition(".")[2] for part in ("parameterization", "schedule") if part in learned)


def _plain(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


def _count(module: VideoDiffusion) -> int:
    return sum(parameter.numel() for parameter in module.denoiser.parameters())
