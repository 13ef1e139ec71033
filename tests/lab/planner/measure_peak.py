"""Trains two steps of a composed model on made-up clips; prints by how many bytes the process grew at most.

``python measure_peak.py [group=choice ...] [key=value ...]``
"""

# ruff: noqa: E402  malloc is set up before torch is imported

import sys
from pathlib import Path
from typing import Any

from vidlab.lab.cli.process_env import prepare_host

prepare_host()  # as train.py does, before torch is imported

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import open_dict
from torch.utils.data import DataLoader, Dataset

from vidlab.clip import ClipBatch
from vidlab.lab.compose import build_module, build_trainer
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver

STEPS = 2  # from the second on, the optimizer's state is there while activations are


def status(key: str) -> int:
    """Bytes of the process that Linux tells under a name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


class Peak(Callback):
    """Resident memory over that before the first batch."""

    def on_train_start(self, *_: Any) -> None:
        self.before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def on_train_end(self, *_: Any) -> None:
        print(f"peak {status('VmHWM') - self.before}")


class Clips(Dataset[ClipBatch]):
    """Batches of black clips with captions of the planned length."""

    def __init__(self, shape: tuple[int, int, int], clips: int, words: int, batches: int) -> None:
        self.shape, self.clips, self.words, self.batches = shape, clips, words, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> ClipBatch:
        size = self.clips
        return ClipBatch(
            torch.zeros(size, 3, *self.shape, dtype=torch.uint8), (" ".join(["a"] * self.words),) * size,
            tuple(map(str, range(size))), (0,) * size, number, (8.0,) * size,
        )  # fmt: skip


def main() -> None:
    """Compose, train, print."""
    torch.set_num_threads(1)
    fixed = ["callbacks=[]", f"trainer.max_steps={STEPS}", "trainer=cpu", "trainer.val_check_interval=null"]
    with initialize_config_dir(str(Path(__file__).parents[3] / "conf"), version_base="1.3"):
        cfg = compose("train", [*fixed, *sys.argv[1:]])
    with open_dict(cfg):
        cfg.callbacks = {"ema": {"_target_": "vidlab.callbacks.ema.EMA"}}
        cfg.trainer.update(enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0)
    module = build_module(cfg)
    trainer = build_trainer(cfg, False)
    trainer.callbacks.append(Peak())  # type: ignore[attr-defined]
    words, batches = module.encoders.planned_text_tokens - 1, STEPS * trainer.accumulate_grad_batches
    trainer.fit(module, DataLoader(Clips(module.clip_shape, cfg.data.batch_size, words, batches), batch_size=None))


if __name__ == "__main__":
    main()
