"""What the Lightning loop costs over a bare PyTorch loop doing the same steps.

Both train the default model on the default data with the same optimizer, schedule, clipping, EMA and autocast; the
Lightning side runs the default callbacks and the MLflow logger. Rounds alternate, so that a change in the machine's
load meets both.

    python benchmarks/loop_overhead.py [--rounds 5] [--steps 30] [overrides ...]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidlab.lab.cli.process_env import SPINS, prepare_host

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported; the rest is in prepare_host()

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from omegaconf import DictConfig, open_dict

from record import record
from vidlab.callbacks.ema import warmed_up_decay
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.runs import run_folder  # noqa: F401  registers a resolver
from vidlab.precision import resolve_precision

CONF = Path(__file__).parents[1] / "conf"
WARM_UP = 3


class Clock(Callback):
    """Time stamps after each step."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Stamp."""
        self.stamps.append(time.perf_counter())


def configuration(folder: Path, steps: int, overrides: list[str]) -> DictConfig:
    """The default training configuration, writing below ``folder``."""
    fixed = [
        f"trainer.max_steps={steps + WARM_UP}", "trainer.val_check_interval=1000000", "trainer.accelerator=cpu",
        "callbacks.previews=null", "callbacks.validate_at_end=null", "callbacks.checkpoint=null",
        "callbacks.checkpoint_best=null", f"logger.uri=sqlite:///{folder}/mlflow.db",
        f"hydra.run.dir={folder}",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*fixed, *overrides], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    return cfg


def step_seconds(stamps: list[float]) -> list[float]:
    """Durations between stamps, without the warm-up."""
    return [b - a for a, b in zip(stamps[WARM_UP - 1 : -1], stamps[WARM_UP:], strict=True)]


def lightning_round(cfg: DictConfig) -> list[float]:
    """Seconds per step of ``Trainer.fit``."""
    torch.manual_seed(cfg.seed)
    logger = instantiate(cfg.logger, "logger")
    trainer, clock = build_trainer(cfg, logger), Clock()
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(build_module(cfg), datamodule=build_data(cfg))
    logger.close("success")
    return step_seconds(clock.stamps)


def bare_round(cfg: DictConfig) -> list[float]:
    """Seconds per step of a plain loop."""
    torch.manual_seed(cfg.seed)
    module, data = build_module(cfg), build_data(cfg)
    module.configure_model()
    data.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module._count = lambda batch: None  # type: ignore[method-assign]
    steps = cfg.trainer.max_steps
    optimizer = module.optimizer_factory.build(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, module.lr_schedule.factor(steps))
    return step_seconds(list(bare_steps(module, iter(data.train_dataloader()), optimizer, schedule, cfg)))


def bare_steps(module: Any, batches: Iterator[Any], optimizer: Any, schedule: Any, cfg: DictConfig) -> Iterator[float]:
    """Train, yielding a time stamp after each step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    bf16 = resolve_precision(cfg.precision, "cpu") == "bf16-mixed"
    for step in range(cfg.trainer.max_steps):
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = module.training_step(batch, step)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            weight = 1 - warmed_up_decay(step, cfg.callbacks.ema.decay)
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
        yield time.perf_counter()


def main() -> None:
    """Alternate rounds, print and record the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    arguments, overrides = parser.parse_known_args()
    prepare_host()
    bare: list[float] = []
    lightning: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cfg = configuration(Path(folder), arguments.steps, overrides)
        for _ in range(arguments.rounds):
            bare += bare_round(cfg)
            lightning += lightning_round(cfg)
    a, b = statistics.median(bare), statistics.median(lightning)
    print(f"bare loop {a * 1e3:.1f} ms/step, Lightning {b * 1e3:.1f} ms/step, ratio {b / a:.3f}")
    row = {"steps": len(bare), "bare_ms": f"{a * 1e3:.1f}", "lightning_ms": f"{b * 1e3:.1f}", "ratio": f"{b / a:.3f}"}
    print(record("loop_overhead", [row]))


if __name__ == "__main__":
    main()
