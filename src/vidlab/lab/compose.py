"""From a composed configuration to objects."""

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from omegaconf import DictConfig

from vidlab.errors import UserError
from vidlab.lab.entry import instantiate
from vidlab.lab.precision import resolve_precision
from vidlab.training.video_diffusion import VideoDiffusion


def build_module(cfg: DictConfig) -> VideoDiffusion:
    """The training module of a configuration, its denoiser not yet built.

    Raises:
        UserError: a setting that cannot work, by its full key.
    """
    parts = {name: instantiate(cfg[name], name) for name in MODULE_PARTS}
    regularizers = {name: instantiate(node, f"losses.{name}") for name, node in cfg.losses.items() if node}
    make = instantiate(cfg.task, "task", compile=cfg.compile, seed=cfg.seed)
    return make(
        backbone=instantiate(cfg.model.backbone, "model.backbone"),
        clip_shape=(cfg.data.frames, cfg.data.height, cfg.data.width),
        regularizers=regularizers,
        **parts,
    )


MODULE_PARTS = ("autoencoder", "text_encoder", "objective", "optimizer", "lr_schedule", "sampler", "guidance")


def build_data(cfg: DictConfig) -> LightningDataModule:
    """The DataModule of a configuration."""
    return instantiate(cfg.data, "data")


def build_trainer(cfg: DictConfig, logger: Any) -> Trainer:
    """The Trainer, with callbacks by name (null removes one) and checkpoints written atomically.

    Raises:
        UserError: absent hardware, or a precision Lightning does not know.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from vidlab.training.checkpoint_io import AtomicCheckpointIO

    accelerator = resolve_accelerator(cfg.trainer.accelerator)
    callbacks = [instantiate(node, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node]
    try:
        return instantiate(
            cfg.trainer,
            "trainer",
            accelerator=accelerator,
            precision=resolve_precision(cfg.precision, accelerator),
            logger=logger,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error


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
