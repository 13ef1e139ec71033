"""From a composed configuration to objects."""

import inspect
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class
from lightning.pytorch import LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import Stride
from vidlab.conditioning.base import Conditioning, NoConditioning
from vidlab.diffusion.objective import Objective
from vidlab.errors import UserError
from vidlab.lab.cli.error_messages import choices_among, root_cause
from vidlab.lab.cli.hydra_main import instantiate, locate_target
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.layers.kernels import check_trainable
from vidlab.parallel.ranks import share_clips
from vidlab.precision import resolve_precision
from vidlab.sampling.base import Sampler
from vidlab.training.module import ClipModule
from vidlab.training.precision_plugins import precision_plugin

log = logging.getLogger(__name__)

# Groups by the name of the task's argument that they make, and scalars with the values that ask for nothing.
MODULE_PARTS = {
    **{name: name for name in ("autoencoder", "text_encoder", "objective", "conditioning", "optimizer", "lr_schedule")},
    **{"sampler": "sampler", "guidance": "guidance", "backbone": "model", "regularizers": "losses"},
}
SCALARS = {"compile": False, "attention": "auto", "ssm": "auto", "activation_offload": False}


def build_module(cfg: DictConfig, guard: Callable[[], AbstractContextManager[None]] = nullcontext) -> Any:
    """The training module of a configuration, its denoiser not yet built: a ``ClipModule``.

    The task's class names the parts it takes; a part or scalar that was chosen and that it does not take is refused.

    Args:
        cfg: the configuration.
        guard: entered wherever the denoiser is built, on the meta device to read its spec and later for use.

    Raises:
        UserError: a setting that cannot work, by its full key.
    """
    locate_autoencoder(cfg)
    takes = accepted(cfg)
    autoencoder = instantiate(cfg.autoencoder, "autoencoder")
    make = {
        "autoencoder": lambda _: autoencoder,
        "backbone": lambda model: make_backbone(model, autoencoder.stride),
        "regularizers": lambda losses: {n: instantiate(node, f"losses.{n}") for n, node in losses.items() if node},
    }
    parts = {
        name: make[name](cfg[group]) if name in make else instantiate(cfg[group], group)
        for name, group in MODULE_PARTS.items()
        if name in takes
    }
    if "backbone" in parts:
        conditioning: Conditioning = parts.get("conditioning") or NoConditioning()
        check_structure_read(cfg, conditioning)
        made = conditioning.made_to_read(parts["backbone"], autoencoder.stride)
        parts["backbone"] = _guarded(made, guard)
    if "objective" in parts and "sampler" in parts:
        check_process(parts["objective"], parts["sampler"])
    # configurations of older runs lack newer scalars
    scalars = {"seed": cfg["seed"]} | {n: cfg.get(n, plain) for n, plain in SCALARS.items()}
    scalars = {name: value for name, value in scalars.items() if name in takes}
    task = instantiate(cfg.task, "task", **scalars)
    frames = 1 if cfg.data.get("images") else cfg.data.frames
    module = task(clip_shape=(frames, cfg.data.height, cfg.data.width), **parts)
    assert isinstance(module, ClipModule)
    return module


def _guarded(
    make: Callable[..., VideoDenoiser], guard: Callable[[], AbstractContextManager[None]]
) -> Callable[..., VideoDenoiser]:
    def build(**settings: Any) -> VideoDenoiser:
        with guard():
            return make(**settings)

    return build


def check_structure_read(cfg: DictConfig, conditioning: Conditioning) -> None:
    """Refuse signals of structure that the conditioning does not tell.

    Raises:
        UserError: naming both settings.
    """
    chosen = list(cfg.get("structure") or {})
    if chosen and not conditioning.tells_structure:
        raise UserError(
            f"structure={','.join(chosen)}: conditioning={type(conditioning).__name__} tells the model no structure. "
            "Add conditioning=structure; frames are given besides by conditioning@conditioning.frames=masked_video."
        )


def check_process(objective: Objective, sampler: Sampler) -> None:
    """Refuse a sampler that does not undo the objective's process.

    Raises:
        UserError: naming both and the shipped choices of either process.
    """
    if objective.process != sampler.process:
        raise UserError(
            f"sampler={type(sampler).__name__} undoes the {sampler.process} process and "
            f"objective={type(objective).__name__} is trained for the {objective.process} process. Of that one are "
            f"sampler={_of_process('sampler', objective.process)}; of the sampler's are "
            f"objective={_of_process('objective', sampler.process)}."
        )


def _of_process(group: str, process: str) -> str:
    """Choices of a group whose class has this ``process``, separated by commas."""
    names = choices_among(path.stem for path in (config_folder() / group).glob("*.yaml"))
    return ", ".join(name for name in names if get_class(_target(group, name)).process == process) or "none"


def _target(group: str, name: str) -> str:
    """The class of a choice, which may be that of the choice it begins from."""
    node = OmegaConf.load(config_folder() / group / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    found: str = node["_target_"] if "_target_" in node else _target(group, str(node["defaults"][0]))
    return found


def accepted(cfg: DictConfig) -> frozenset[str]:
    """The arguments of the task's class.

    Raises:
        UserError: a group or a scalar was chosen that the task does not take.
    """
    target = get_class(cfg.task["_target_"])
    takes = frozenset(inspect.signature(target).parameters)
    groups = [group for name, group in MODULE_PARTS.items() if name not in takes and cfg.get(group) is not None]
    chosen_scalars = {name: cfg.get(name, plain) for name, plain in SCALARS.items() if name not in takes}
    scalars = [f"{name}={value}" for name, value in chosen_scalars.items() if value != SCALARS[name]]
    if groups or scalars:
        chosen = [*groups, *scalars]
        raise UserError(
            f"{', '.join(chosen)}: {target.__name__} has no use for {'it' if len(chosen) == 1 else 'them'}. Leave "
            f"{'it' if len(chosen) == 1 else 'them'} out, or choose another task."
        )
    return takes


def locate_autoencoder(cfg: DictConfig) -> None:
    """Make ``autoencoder.path`` the absolute path of what it names, so that the recorded configuration keeps it.

    What the autoencoder's class takes for weights stays what it is; ``last``, run folders and MLflow run ids are looked
    up.

    Raises:
        UserError: nothing is there.
    """
    reference = cfg.autoencoder.get("path")
    if reference is None:
        return
    kind = locate_target(cfg.autoencoder._target_, "autoencoder")
    place = getattr(kind, "locate", Autoencoder.locate)(str(reference))
    if place is None:
        uri = cfg.get("logger", {}).get("uri")
        place = str(resolve_run(str(reference), RUNS, cfg.name, uri, key="autoencoder.path").checkpoint.resolve())
    cfg.autoencoder.path = place


def name_classes(cfg: DictConfig) -> None:
    """Set ``text_encoder.classes``, where it is null, to the classes of the data, so that the record keeps them.

    Raises:
        UserError: the data's captions are no classes.
    """
    encoder = cfg.get("text_encoder")
    if encoder is None or "classes" not in encoder or encoder.classes is not None:
        return
    names: tuple[str, ...] = (
        getattr(instantiate(cfg.data.source, "data.source"), "class_names", tuple)() if "source" in cfg.data else ()
    )
    if not names:
        raise UserError(
            f"data={cfg.data.name} has captions and no classes, and text_encoder.classes is not set. Take data that "
            "has classes (data=ucf101 data.path=FOLDER), or, where each caption is the name of a class, name them: "
            "text_encoder.classes=[walking,running]."
        )
    encoder.classes = list(names)


def make_backbone(model: DictConfig, stride: Stride) -> Callable[..., VideoDenoiser]:
    """The denoiser's constructor.

    ``model.token``, where a model has it, is the size of a token in pixels (frames, rows, columns): the patch follows
    from the autoencoder's stride, so that autoencoders of different strides give the same number of tokens. A token is
    at least one latent position, and where that is larger the log says so.

    Raises:
        UserError: the token is more than one latent position and not a whole number of them.
    """
    if model.get("token") is None:
        return instantiate(model.backbone, "model.backbone")
    steps = (stride.frames, stride.height, stride.width)
    token = [max(size, step) for size, step in zip(model.token, steps, strict=True)]
    if any(size % step for size, step in zip(token, steps, strict=True)):
        raise UserError(
            f"model.token={list(model.token)} pixels is not a multiple of the autoencoder's stride {list(steps)}. "
            f"Use model.token={[size // step * step for size, step in zip(token, steps, strict=True)]}."
        )
    if token != list(model.token):
        log.info("model.token=%s: a latent position is %s pixels, tokens are %s", list(model.token), list(steps), token)
    patch = [size // step for size, step in zip(token, steps, strict=True)]
    return instantiate(model.backbone, "model.backbone", patch=patch)


def build_data(cfg: DictConfig) -> LightningDataModule:
    """The DataModule of a configuration."""
    return instantiate(cfg.data, "data")


def build_trainer(cfg: DictConfig, logger: Any) -> Trainer:
    """The Trainer, with callbacks by name (null removes one) and checkpoints written atomically.

    Raises:
        UserError: absent hardware, or a precision or an attention kernel that cannot train on it.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from vidlab.training.checkpoint_io import AtomicCheckpointIO

    accelerator = resolve_accelerator(cfg.trainer.accelerator)
    _check_processes(cfg.trainer.get("devices", 1), accelerator)
    _refuse_overfitting(cfg.trainer)
    check_trainable(cfg.attention, accelerator)
    _check_offload(cfg, accelerator)
    callbacks = [instantiate(node, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node]
    try:
        trainer: Trainer = instantiate(
            _without_sharing(cfg.trainer),
            "trainer",
            accelerator=accelerator,
            logger=logger,
            callbacks=callbacks,
            plugins=[
                AtomicCheckpointIO(),
                precision_plugin(resolve_precision(cfg.precision, accelerator), accelerator),
            ],
        )
    except (MisconfigurationException, InstantiationException) as error:
        cause = root_cause(error)
        if not isinstance(cause, MisconfigurationException):
            raise
        raise UserError(f"trainer: {cause}") from error
    share_clips(trainer, cfg.trainer.get("sequence_parallel", 1))
    return trainer


def _check_offload(cfg: DictConfig, accelerator: str) -> None:
    if not cfg.get("activation_offload"):
        return
    if accelerator == "cpu":
        raise UserError(
            "activation_offload=true moves activations from a GPU to main memory, and this run computes on the CPU, "
            "whose memory that is. Leave it out; model.backbone.activation_checkpointing=true saves memory here."
        )
    if "fully_sharded" in str(cfg.trainer.get("strategy", "")):
        raise UserError(
            "activation_offload=true has not been tried where weights are gathered from shards. Use trainer=gpu or ddp."
        )


def _without_sharing(trainer: DictConfig) -> DictConfig:
    """What Lightning's trainer takes."""
    kept = trainer.copy()
    with open_dict(kept):
        kept.pop("sequence_parallel", None)
    return kept


def _refuse_overfitting(trainer: DictConfig) -> None:
    batches = trainer.get("overfit_batches")
    if batches:
        raise UserError(
            f"trainer.overfit_batches={batches}: Lightning would put an order of its own in place of the planned one. "
            "To learn a few clips by heart train on no more than those: data.source.train_clips=16 with "
            "data=moving_shapes, or a folder of a few videos."
        )


def _check_processes(devices: int | str, accelerator: str) -> None:
    cores = os.cpu_count() or 1
    if accelerator == "cpu" and str(devices).isdigit() and int(devices) > max(cores, 2):
        raise UserError(f"trainer.devices={devices}: one process per core at most, and this machine has {cores} cores.")


def resolve_accelerator(accelerator: str) -> str:
    """``auto`` is CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator}: no CUDA GPU is visible to torch. Use trainer=cpu, or install a CUDA "
            f"build of torch (requirements-gpu.txt) and check nvidia-smi."
        )
    return accelerator
