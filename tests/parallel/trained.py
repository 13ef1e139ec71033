"""A small denoiser trained on one process or several, with what follows every step: clipping, averages, checkpoints."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from vidlab.autoencoders.identity import Identity
from vidlab.backbones.dit import DiT
from vidlab.callbacks.adaptive_clipping import AdaptiveClipping
from vidlab.callbacks.ema import EMA
from vidlab.clip import ClipBatch
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant as Unweighted
from vidlab.layers.layouts import GroupSkip, LayerPlan, SingleSkip
from vidlab.parallel.ranks import share_clips
from vidlab.parallel.shards import whole
from vidlab.randomness import KeyedRNG
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance
from vidlab.sampling.solvers import Euler
from vidlab.text.words import WordsEncoder
from vidlab.training.checkpoint_io import AtomicCheckpointIO
from vidlab.training.optimization.fully_sharded import FullyShardedStrategy
from vidlab.training.optimization.muon import MuonWithAdamW
from vidlab.training.optimization.optimizers import Constant, OptimizerFactory
from vidlab.training.video_diffusion import VideoDiffusion

SIZE = (4, 8, 8)
ADAMW = partial(torch.optim.AdamW, eps=1e-4)
MUON = partial(MuonWithAdamW, eps=1e-4, precision="32-true")


@dataclass(frozen=True)
class Training:
    """How the denoiser is trained."""

    name: str
    strategy: Any = "auto"
    devices: int = 1
    share: int = 1
    optimizer: Any = ADAMW
    recomputed: bool = False  # activations, in the backward pass
    compiled: bool = False


def module_of(training: Training) -> VideoDiffusion:
    torch.manual_seed(0)
    layouts = LayerPlan((SingleSkip(2), GroupSkip(2)), full_last=1)
    module = VideoDiffusion(
        partial(
            DiT, layouts=layouts, width=12, depth=3, heads=2, patch=(1, 4, 4),
            activation_checkpointing=training.recomputed,
        ),
        GaussianObjective(LinearPath(), Velocity(), Unweighted(), Uniform()), Identity(),
        WordsEncoder(width=8, depth=1, heads=2, rows=33, max_tokens=8), SIZE,
        OptimizerFactory(training.optimizer, lr=0.01, clip_norm=0.5), Constant(), GaussianSampler(Euler(), 2),
        ClassifierFreeGuidance(2.0), compile=training.compiled,
    )  # fmt: skip
    module.configure_model()
    for parameter in module.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def batch_of(keys: str, number: int) -> ClipBatch:
    names = tuple(f"{key}{number}" for key in keys)
    pixels = KeyedRNG(7, names, (0,) * len(names)).uniform("pixels", (3, *SIZE)) * 2 - 1
    captions = tuple(f"a {name} moves" for name in names)
    return ClipBatch(pixels, captions, names, (0,) * len(names), number, (8.0,) * len(names))


def train(
    training: Training, keys: str, steps: int, folder: Path, save: str | None = None, resume: Path | None = None
) -> dict[str, Tensor]:
    """Weights and their average after so many steps on the clips of ``keys``; ``save`` names a checkpoint."""
    module, average = module_of(training), EMA()
    strategy = training.strategy if isinstance(training.strategy, str) else training.strategy()
    callbacks: Sequence[Callback] = [AdaptiveClipping(warmup_steps=1), average]
    trainer = Trainer(
        accelerator="cpu", devices=training.devices, strategy=strategy, max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        use_distributed_sampler=False, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )  # fmt: skip
    share_clips(trainer, training.share)
    batches = [batch_of(keys, number) for number in range(steps)]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=resume, weights_only=True)
    if save is not None:
        save_each_way(trainer, folder, save)
    weights = {name: whole(value.detach()).clone() for name, value in module.named_parameters()}
    return weights | {f"ema.{name}": whole(value) for name, value in average.average.items()}


def save_each_way(trainer: Trainer, folder: Path, name: str) -> None:
    """A checkpoint; where it is sharded one that is gathered too, of which nothing was needed for the first."""
    if not isinstance(trainer.strategy, FullyShardedStrategy):
        trainer.save_checkpoint(folder / name)
        return
    with patch("torch.distributed.tensor.DTensor.full_tensor", side_effect=AssertionError("a tensor was gathered")):
        trainer.save_checkpoint(folder / name)
    trainer.strategy._save_distributed_checkpoint = False
    trainer.save_checkpoint(folder / f"gathered {name}")


def launched(rank: int, ranks: int) -> None:
    """Let Lightning take this process for one of several that a launcher has started."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks}
    os.environ.update({key: str(value) for key, value in place.items()})
