"""``vidlab step_times``: how long a training step takes on each bucket of the data, as a file for balanced batches.

``vidlab step_times [group=choice ...] [key=value ...] [steps=N] [file=PATH]`` takes the arguments of ``train.py``.
"""

import logging
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import open_dict

from vidlab.command_line import exit_code
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.step_times import KEY, StepTime, StepTimes, write_step_times
from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.cli.composed import compose
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.image_models.provide import provide_image_model
from vidlab.lab.planner.step import made_up_batch, without_trainer
from vidlab.lab.runs.provenance import collect
from vidlab.training.video_diffusion import VideoDiffusion

USAGE = """vidlab step_times [group=choice ...] [key=value ...] [steps=N] [file=PATH]

Measure a training step on each bucket of the data that train.py would train on with these settings, at the batch size
that it has by tokens and at half of that, and write the table that data.bucketing.step_times reads: batches then take
equal time instead of having equal tokens.

  steps=    steps that are timed of each size, of which the median counts; 5
  file=     where to write; step_times.json"""

OWN = {"steps": "5", "file": "step_times.json"}


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the table and show it."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(typed):
        print(USAGE)
        return
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    print(terminal(measured(typed)))


def measured(words: Sequence[str]) -> str:
    """Measure and write; returns what there is to say.

    Raises:
        UserError: settings that cannot work, or data without buckets.
    """
    own = OWN | {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN}
    if not own["steps"].isdigit() or int(own["steps"]) < 1:
        raise UserError(f"steps={own['steps']}: it must be a whole number, 1 or more.")
    rest = [word for word in words if word.partition("=")[0] not in OWN]
    cfg = compose(*rest, "data.bucketing.step_times=null", "logger=none")
    with open_dict(cfg):
        cfg.callbacks = {}  # they belong to a run, which this is not
    provide_image_model(cfg, tuple(cfg.get("allow") or ()))
    data, module = build_data(cfg), build_module(cfg)
    if not isinstance(data, ClipDataModule) or data.bucketing.max_tokens is None:
        raise UserError("step_times measures buckets, and there are none: set data.bucketing.max_tokens.")
    if not isinstance(module, VideoDiffusion):
        raise UserError("step_times measures trainings of denoisers. Leave task=autoencoder out.")
    rule = data.bucketing
    buckets = rule.assignment(data.data.train).buckets
    sizes = dict(zip(buckets, rule.batch_sizes(buckets, data.batch_size), strict=True))
    seed_everything(cfg.seed, verbose=False)
    times = measure(module, build_trainer(cfg, False), sizes, int(own["steps"]))
    found = collect()
    about = {"settings": rest, "cpu": found.hardware.cpu, "gpus": found.hardware.gpus, "torch": torch.__version__}
    write_step_times(Path(own["file"]), times, about)
    largest = max(buckets, key=rule.tokens)
    balanced = times.batch_sizes(buckets, largest, sizes[largest])
    return "\n".join([*rows(times, sizes, balanced), f"{own['file']}: use it with {KEY}={own['file']}"])


def rows(times: StepTimes, sizes: Mapping[Bucket, int], balanced: Sequence[int]) -> list[str]:
    """For each bucket its batches by tokens and by time, and how long they take."""
    lines = [f"{'bucket':>14}{'by tokens':>12}{'seconds':>10}{'by time':>12}{'seconds':>10}"]
    for (bucket, size), other in zip(sizes.items(), balanced, strict=True):
        line = times.of(bucket)
        lines.append(
            f"{bucket!s:>14}{size:>12}{line.seconds(size):>10.3f}{other:>12}{line.seconds(other):>10.3f}",
        )
    return lines


def measure(module: VideoDiffusion, trainer: Trainer, sizes: Mapping[Bucket, int], steps: int) -> StepTimes:
    """The times of each bucket, from batches of its size and of half of that.

    Args:
        module: its denoiser not yet built.
        trainer: says device and precision.
        sizes: clips of a batch.
        steps: that are timed of each.
    """
    timer = StepTimer(module, trainer)
    return StepTimes({
        str(bucket): StepTime.through(
            *((one, timer.seconds(bucket, one, steps)) for one in (max(1, clips // 2), clips))
        )
        for bucket, clips in sizes.items()
    })  # fmt: skip


class StepTimer:
    """Times training steps on made-up clips, without what a run does beside them.

    Args:
        module: its denoiser not yet built.
        trainer: says device and precision.
    """

    def __init__(self, module: VideoDiffusion, trainer: Trainer) -> None:
        self.module, self.device, self.precision = module, trainer.strategy.root_device, trainer.precision_plugin
        module.configure_model()
        self.precision.convert_module(module.to(self.device).train())
        self.optimizer = module.optimizer_factory.build(module)

    def seconds(self, bucket: Bucket, clips: int, steps: int) -> float:
        """The median of ``steps`` steps, after one that is not counted."""
        found = []
        with without_trainer(self.module):
            for number in range(steps + 1):
                self._wait()
                started = time.perf_counter()
                self._step(bucket, clips, number)
                self._wait()
                found.append(time.perf_counter() - started)
        return statistics.median(found[1:])

    def _step(self, bucket: Bucket, clips: int, number: int) -> None:
        shape = (bucket.frames, bucket.height, bucket.width)
        batch = made_up_batch(self.module, shape, clips, number, self.device.type)
        with self.precision.forward_context():
            loss: Any = self.module.training_step(batch, number)["loss"]
        loss.backward()
        self.module.optimizer_factory.clip(self.module)
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
