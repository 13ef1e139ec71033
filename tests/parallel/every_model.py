"""Every model at a tiny size, trained by the trainer of its configuration on clips of its data, alone or in twos."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))

from golden_runs import TINY, choices, composed

from vidlab.callbacks.adaptive_clipping import AdaptiveClipping
from vidlab.callbacks.ema import EMA
from vidlab.callbacks.evaluation import Evaluation
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.image_models.provide import provide_image_model
from vidlab.lab.runs.config_record import ConfigRecord, resolved_yaml
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering
from vidlab.parallel.shards import whole
from vidlab.training.optimization.fully_sharded import check_parallelism

MODELS = choices("model")
WORDS = (
    *TINY, "trainer.accelerator=cpu", "logger=none", "data.source.train_clips=16", "data.source.val_clips=8",
    "data.val_clips=4", "data.num_workers=0", "+trainer.enable_progress_bar=false", "optimizer=adamw",
    "optimizer.algorithm.eps=1e-4", "lr_schedule=constant",
)  # fmt: skip

FROZEN = ("model.image_training.max_steps=1", "model.image_training.batch_size=2")  # what harivo stands on


@dataclass(frozen=True)
class Fit:
    """A training: of a model, by processes, to a step; what of it is left."""

    model: str
    trainer: str = "auto"
    processes: int = 1
    share: int = 1
    steps: int = 2

    @property
    def words(self) -> tuple[str, ...]:
        """Of the command line: two clips a step, whoever computes them."""
        own = 2 * self.share // self.processes if self.processes > 1 else 2
        words = (f"model={self.model}", f"trainer={self.trainer}", *WORDS, f"data.batch_size={own}")
        words += (f"trainer.max_steps={self.steps}", f"trainer.sequence_parallel={self.share}")
        words += FROZEN if self.model == "harivo" else ()
        return (*words, f"trainer.devices={self.processes}")

    def run(self, folder: Path, save: str | None = None, resume: str | None = None) -> dict[str, Any]:
        """Weights, their average and the last loss; ``save`` and ``resume`` name checkpoints of the folder."""
        cfg = composed("train", *self.words)
        provide_image_model(cfg)
        torch.manual_seed(0)
        module, data = build_module(cfg), build_data(cfg)
        module.configure_model()
        for parameter in module.denoiser.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        trainer, average = build_trainer(cfg, False), EMA()
        evaluation = Evaluation({"flicker": TemporalFlickering()}, None, 3, 1, folder=str(folder / "evaluation"))
        stored = ConfigRecord(resolved_yaml(cfg), folder)
        trainer.callbacks[:] = [AdaptiveClipping(), average, evaluation, stored]
        check_parallelism(trainer, module)
        checkpoint = None if resume is None else folder / resume
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if save is not None:
            trainer.save_checkpoint(folder / save)
        found = {name: whole(value.detach()).clone() for name, value in module.named_parameters()}
        return found | {f"ema.{name}": whole(value) for name, value in average.average.items()}
