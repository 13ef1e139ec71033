"""What a run says at its end: what was reached, where the time went, where things lie, what to type next."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from vidlab.callbacks.throughput import PHASES, Throughput, ThroughputReport
from vidlab.cost import matmul_rate
from vidlab.files import write_json
from vidlab.training.module import ClipModule, Named

# The numbers of matrix products, by the beginning of a precision's name.
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


@dataclass(frozen=True)
class Summary:
    """The end of a run, in numbers.

    ``matmul_flops_per_second`` is the measured rate of a large product in the training precision on what trained: all
    GPUs together, or the CPU that all processes share. It is the yardstick of ``throughput.flops_per_second``.
    ``shown`` are metrics worth a line, ``commands`` what to type next, ``checkpoints`` the files that are there.
    """

    folder: Path
    steps: int
    wall_seconds: float
    first: Mapping[str, float]
    last: Mapping[str, float]
    throughput: ThroughputReport | None
    matmul_flops_per_second: float
    previews: Path | None
    skipped: Mapping[str, str]
    tracking_uri: str | None
    shown: Sequence[str] = ("val/loss",)
    commands: Sequence[str] = ()
    checkpoints: Sequence[str] = ()

    def write(self) -> None:
        """Write ``summary.json`` into the run folder."""
        record = asdict(self) | {"folder": str(self.folder), "previews": self.previews and str(self.previews)}
        write_json(self.folder / "summary.json", record)

    def tags(self) -> dict[str, str]:
        """Facts worth a column in a table of runs."""
        found = {"vidlab.skipped_clips": str(len(self.skipped))}
        if self.throughput is not None and self.throughput.steps:  # as computed, in place of what was planned
            found["vidlab.flops_per_step"] = f"{self.throughput.flops_per_step:.0f}"
        return found

    def text(self) -> str:
        """A screenful for the terminal."""
        return "\n".join(["", *self._results(), *self._speed(), *self._places(), *self._next(), ""])

    def _results(self) -> list[str]:
        lines = [f"Trained {self.steps} steps in {self.wall_seconds:.0f} s."]
        for name in self.shown:
            if name in self.last:
                before = f"{self.first[name]:.4f} -> " if name in self.first else ""
                lines.append(f"  {name:<12} {before}{self.last[name]:.4f}")
        if self.skipped:
            shown = "; ".join(f"{key}: {reason}" for key, reason in list(self.skipped.items())[:3])
            lines.append(f"  {len(self.skipped)} unreadable clips were skipped ({shown})")
        return lines

    def _speed(self) -> list[str]:
        report = self.throughput
        if report is None or report.steps == 0:
            return []
        total = max(sum(report.seconds.values()), 1e-9)
        split = ", ".join(f"{phase} {report.seconds[phase] / total:.0%}" for phase in PHASES)
        share = report.flops_per_second / self.matmul_flops_per_second
        return [
            f"  time         {split} (validation, previews and files are other)",
            f"  speed        {report.steps_per_second:.2f} steps/s, {report.tokens_per_second:,.0f} tokens/s, "
            f"{report.flops_per_second / 1e9:.0f} GFLOP/s = {share:.0%} of the matrix product rate here",
        ]

    def _places(self) -> list[str]:
        names = ", ".join(self.checkpoints)
        lines = [
            f"  checkpoints  {self.folder / 'checkpoints'}/{names}" if names else "  checkpoints  none was written"
        ]
        if self.previews:
            lines.append(f"  previews     {self.previews} and .mp4")
        return lines

    def _next(self) -> list[str]:
        commands = list(self.commands)
        if self.tracking_uri:
            commands.insert(1, f"mlflow ui --backend-store-uri {shlex.quote(self.tracking_uri)}")
        return ["Next:", *(f"  {command}" for command in commands)] if commands else []


def summary_of(folder: Path, steps: int) -> Mapping[str, Any] | None:
    """The summary that a run has left of so many steps; None without one, or of others, or a damaged one."""
    try:
        found = json.loads((folder / "summary.json").read_text())
        return found if found["steps"] == steps and found["last"] else None
    except (OSError, ValueError, KeyError, TypeError):  # it is written anew
        return None


def summarize(
    folder: Path,
    trainer: Trainer,
    module: ClipModule,
    first: Mapping[str, float],
    wall_seconds: float,
    tracking_uri: str | None,
    named: Named,
) -> Summary:
    """Gather the summary of a finished run."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), None)
    previews = next((c.latest for c in callbacks if getattr(c, "latest", None)), None)
    dtype = next((kind for name, kind in DTYPES.items() if str(trainer.precision).startswith(name)), torch.float32)
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    device = trainer.strategy.root_device  # the module itself has left it by now
    checkpoints = [name for name in ("last.ckpt", "best.ckpt") if (folder / "checkpoints" / name).is_file()]
    return Summary(
        folder=shortened(folder),
        steps=trainer.global_step,
        wall_seconds=wall_seconds,
        first=first,
        last={name: float(value) for name, value in trainer.callback_metrics.items()},
        throughput=throughput.report() if throughput else None,
        matmul_flops_per_second=matmul_rate(dtype, device) * (trainer.world_size if device.type == "cuda" else 1),
        previews=shortened(previews) if previews else None,
        skipped=dict(getattr(datamodule, "corrupt", {})),
        tracking_uri=tracking_uri,
        shown=module.results,
        commands=module.next_commands(shortened(folder), named) if checkpoints else (),
        checkpoints=checkpoints,
    )


def shortened(path: Path) -> Path:
    """Relative to the current folder where that is shorter to type."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
