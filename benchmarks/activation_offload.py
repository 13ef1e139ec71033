"""What activation offload and activation checkpointing leave on a device, and on a GPU what each costs in time.

The bytes are those of the planner's memory model: tensors of a training step, followed from the operation that makes
them to their last use. With a GPU, steps are run as well and their peak and time are measured.

    python benchmarks/activation_offload.py [--models full3d,stiv,mmdim] [--clips 32] [--scale 1] [--steps 5]
"""

import argparse

import torch
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig, open_dict

from record import record
from vidlab.data.samplers.assignment import Bucket
from vidlab.lab.cli.composed import compose
from vidlab.lab.compose import build_module, build_trainer
from vidlab.lab.planner.step import step_memory
from vidlab.lab.reports.step_times import StepTimer

KINDS = [(kind, offload) for kind in ("none", "selective", "block") for offload in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="full3d,stiv,mmdim")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    rows = []
    for model in asked.models.split(","):
        for kind, offload in KINDS:
            words = (
                f"model={model}", f"model.scale={asked.scale:g}", f"activation_offload={offload}", "logger=none",
                f"model.backbone.activation_checkpointing={kind}",
            )  # fmt: skip
            cfg = compose(*words)
            module = build_module(cfg)
            with torch.device("meta"):
                module.configure_model()
            memory = step_memory(module, module.clip_shape, asked.clips, 1, Precision(), "cpu")
            row = {
                "model": model, "scale": asked.scale, "clips": asked.clips, "checkpointing": kind, "offload": offload,
                "activations_mb": round(memory.activations / 1e6, 1), "peak_mb": round(memory.peak / 1e6, 1),
                "moved_mb": round(memory.offloaded / 1e6, 1), **measured(cfg, asked.clips, asked.steps),
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    print(record("activation_offload", rows))


def measured(cfg: DictConfig, clips: int, steps: int) -> dict[str, float | str]:
    """Peak and time of a step on a GPU; empty cells without one."""
    if not torch.cuda.is_available():
        return {"gpu_peak_mb": "", "gpu_seconds": ""}
    with open_dict(cfg):
        cfg.callbacks = {}
    module = build_module(cfg)
    timer = StepTimer(module, build_trainer(cfg, False))
    torch.cuda.reset_peak_memory_stats()
    seconds = timer.seconds(Bucket(*module.clip_shape), clips, steps)
    peak = torch.cuda.max_memory_allocated()
    del timer, module
    torch.cuda.empty_cache()
    return {"gpu_peak_mb": round(peak / 1e6, 1), "gpu_seconds": round(seconds, 4)}


if __name__ == "__main__":
    main()
