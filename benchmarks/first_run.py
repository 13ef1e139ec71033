"""What a first run spends its time on: imports, the wait for the first step, and the parts of a step.

Runs ``train.py`` as a person does, in a process of its own, with bf16 where this CPU has it and once more as a CPU
without it. The rendered clips are made before the clock starts.

    python benchmarks/first_run.py [overrides ...] [--steps 680] [--modes native without_bf16]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from lightning.pytorch import Callback

from record import record

ROOT = Path(__file__).parents[1]
MODES: Mapping[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "native": ({}, ()),
    "without_bf16": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, ("precision=32-true",)),
}
IMPORTS = {
    "import_torch": "import torch",
    "import_train": (
        "from vidlab.lab.cli.lean_imports import prepare_imports; prepare_imports(); import vidlab.lab.train"
    ),
    "import_train_whole_torchmetrics": "import vidlab.lab.train",
}


class Marks(Callback):
    """Inside ``train.py``: when the first step was done, and how long validations took, as JSON."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.found: dict[str, float] = {}
        self.validations: list[float] = []
        self._began = 0.0

    def on_validation_start(self, *_: Any) -> None:
        """Begin."""
        self._began = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        """Take the time."""
        self.validations.append(time.perf_counter() - self._began)

    def on_train_batch_end(self, *_: Any) -> None:
        """Seconds since the process began, once."""
        if not self.found:
            self.found["first_step"] = time.time() - psutil.Process().create_time()
            self.found["first_step_cpu"] = processor_seconds(resource.RUSAGE_SELF)

    def on_fit_end(self, *_: Any) -> None:
        """Write what was found, the last validation included."""
        self.path.write_text(json.dumps(self.found | {"validation": self.validations}))


def processor_seconds(who: int) -> float:
    """User and system time."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def process(command: list[str], cwd: str | Path, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run a command; its seconds, and those of its processor."""
    before, start = processor_seconds(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=cwd, env={**os.environ, **(environment or {})}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, processor_seconds(resource.RUSAGE_CHILDREN) - before


def imports(rounds: int) -> dict[str, str]:
    """The least time of each import, in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, code in IMPORTS.items():
            found[name].append(process([sys.executable, "-c", code], ROOT))
    return {f"{name}_s": f"{min(found[name])[0]:.2f}" for name in IMPORTS} | {
        f"{name}_cpu_s": f"{min(cpu for _, cpu in found[name]):.2f}" for name in IMPORTS
    }


def run(mode: str, steps: int, overrides: list[str]) -> dict[str, str]:
    """One training, from its first line to its last."""
    environment, settings = MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.json"
        command = [
            sys.executable, str(ROOT / "train.py"), f"trainer.max_steps={steps}", f"hydra.run.dir={folder}/run",
            "+callbacks.marks._target_=first_run.Marks", f"+callbacks.marks.path={marks}", *settings, *overrides,
        ]  # fmt: skip
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        seconds, cpu = process(command, folder, {**environment, "PYTHONPATH": path})
        found = json.loads(marks.read_text())
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return {"whole_s": f"{seconds:.0f}", "whole_cpu_s": f"{cpu:.0f}", **row(found, summary)}


def row(found: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """Numbers worth a column: ``other`` is validations, previews and files."""
    rates = summary["throughput"]
    total = sum(rates["seconds"].values())
    validations = found["validation"]
    inside = sum(validations[1:])  # the first is before training
    return {
        "first_step_s": f"{found['first_step']:.1f}",
        "first_step_cpu_s": f"{found['first_step_cpu']:.1f}",
        "steps_per_second": f"{rates['steps_per_second']:.2f}",
        **{name: f"{seconds / total:.3f}" for name, seconds in rates["seconds"].items() if name != "other"},
        "validation": f"{inside / total:.3f}",
        "previews_and_files": f"{(rates['seconds']['other'] - inside) / total:.3f}",
        "validation_s": f"{sum(validations) / len(validations):.1f}",
        "loss_before": f"{summary['first']['val/loss']:.4f}",
        "loss_after": f"{summary['last']['val/loss']:.4f}",
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=680)
    parser.add_argument("--rounds", type=int, default=3, help="of imports")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:  # renders the clips and warms the page cache
        warm = [sys.executable, str(ROOT / "train.py"), "trainer.max_steps=1", "logger=none"]
        process([*warm, f"hydra.run.dir={folder}/run", *overrides], folder)
    common = imports(arguments.rounds)
    for mode in arguments.modes:
        found = {"mode": mode, "steps": str(arguments.steps), "settings": " ".join(overrides), **common}
        found |= run(mode, arguments.steps, overrides)
        print("  ".join(f"{name}={value}" for name, value in found.items()))
        print(record("first_run", [found]))


if __name__ == "__main__":
    main()
