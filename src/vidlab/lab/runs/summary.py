"""What a run says at its end: what was reached, where the time went, where things lie, what to type next."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from vidlab.callbacks.cost.meter import CostMeter
from vidlab.callbacks.cost.utilization import Utilization, utilization
from vidlab.callbacks.throughput import PHASES, Throughput, ThroughputReport
from vidlab.cost.rates import DeviceRates, device_rates
from vidlab.cost.work import Work
from vidlab.data.module import ClipDataModule
from vidlab.files import write_json
from vidlab.lab.runs.job import Job
from vidlab.lab.runs.next_commands import CliSelection, next_commands
from vidlab.parallel.shard_files import folders_beside, size_of
from vidlab.training.module import ClipModule

# The numbers of matrix products, by the beginning of a precision's name.
LONGEST_PROMPT = 200
FEWEST_TIMED = 20
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


@dataclass(frozen=True)
class Summary:
    """The end of a run, in numbers.

    ``rates`` are those that what trained can reach, all GPUs together or the CPU that all processes share, measured in
    the training precision. They are the yardsticks of ``throughput.flops_per_second``, and None for runs of fewer than
    ``FEWEST_TIMED`` steps, whose speed says nothing.
    ``steps`` are those that the run has taken in all, ``own_steps`` those since it was started or resumed.
    ``shown`` are metrics worth a line, ``commands`` what to type next, ``checkpoints`` the files that are there, and
    ``shards`` the bytes of each folder of shards beside them, ``page`` where a browser shows the curves.
    ``cost`` is what the run has cost since it began, all processes together, and ``cost_beside`` are the FLOPs of what
    is not the denoiser: encoding clips and captions, and the training of an image model that it stands on.
    """

    folder: Path
    steps: int
    wall_seconds: float
    first: Mapping[str, float]
    last: Mapping[str, float]
    throughput: ThroughputReport | None
    rates: DeviceRates | None
    previews: Path | None
    skipped: Mapping[str, str]
    tracking_uri: str | None
    shown: Sequence[str] = ("val/loss",)
    commands: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    shards: Mapping[str, int] = field(default_factory=dict)
    own_steps: int = 0
    page: str | None = None
    cost: Work | None = None
    cost_beside: Mapping[str, float] = field(default_factory=dict)

    def write(self) -> None:
        """Write ``summary.json`` into the run folder."""
        record = asdict(self) | {"folder": str(self.folder), "previews": self.previews and str(self.previews)}
        record["utilization"] = {shape: asdict(one) for shape, one in self.utilization.items()}
        write_json(self.folder / "summary.json", record)

    def tags(self) -> dict[str, str]:
        """Facts worth a column in a table of runs."""
        found = {"vidlab.skipped_clips": str(len(self.skipped))}
        if self.throughput is not None and self.throughput.steps:  # as computed, in place of what was planned
            found["vidlab.flops_per_step"] = f"{self.throughput.flops_per_step:.0f}"
        found |= {f"vidlab.{name}": f"{flops:.0f}" for name, flops in self.cost_beside.items()}
        return found

    def text(self) -> str:
        """A screenful for the terminal."""
        return "\n".join(["", *self._results(), *self._speed(), *self._places(), *self._next(), ""])

    def _results(self) -> list[str]:
        whole = f", {self.steps} in all" if self.own_steps != self.steps else ""
        lines = [f"Trained {self.own_steps} steps in {self.wall_seconds:.0f} s{whole}."]
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
        found = self.utilization
        share = f" = {next(iter(found.values()))}" if len(found) == 1 else ""
        return [
            f"  time         {split} (validation, previews and files are other)",
            f"  speed        {report.steps_per_second:.2f} steps/s, {report.tokens_per_second:,.0f} tokens/s, "
            f"{report.flops_per_second / 1e9:.0f} GFLOP/s{share}",
            *(f"  {shape:<12} {one}" for shape, one in found.items() if len(found) > 1),
        ]

    @property
    def utilization(self) -> dict[str, Utilization]:
        """How much of what the device can do each shape of clips has used."""
        if self.throughput is None or self.rates is None:
            return {}
        shapes = self.throughput.shapes.items()
        return {shape: utilization(one, self.rates) for shape, one in sorted(shapes) if one.seconds > 0}

    def _places(self) -> list[str]:
        names = ", ".join(self.checkpoints)
        lines = [
            f"  checkpoints  {self.folder / 'checkpoints'}/{names}" if names else "  checkpoints  none was written"
        ]
        if self.shards:
            sizes = (f"{name} ({size / 1e6:,.1f} MB)" for name, size in self.shards.items())
            lines.append(f"  shards       {', '.join(sizes)}, beside them")
        if self.previews:
            lines.append(f"  previews     {self.previews} and .mp4")
        return lines

    def _next(self) -> list[str]:
        commands = list(self.commands)
        if self.tracking_uri:
            commands.insert(1, self._browser(self.tracking_uri))
        return ["Next:", *(f"  {command}" for command in commands)] if commands else []

    def _browser(self, uri: str) -> str:
        """How to look at the curves; a server is there already."""
        if uri.startswith(("http://", "https://")):
            return f"open {self.page}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}\n    and open {self.page}"


@dataclass(frozen=True)
class Course:
    """How a training went.

    Args:
        first: the metrics before its first step.
        seconds: that it took.
        first_step: that it began or resumed at.
        before: FLOPs of what was trained once, for it and for other runs, by what that was.
    """

    first: Mapping[str, float]
    seconds: float
    first_step: int
    before: Mapping[str, float] = field(default_factory=dict)


def summary_of(folder: Path, steps: int) -> Mapping[str, Any] | None:
    """The summary that a run has left of so many steps; None without one, or of others, or a damaged one."""
    try:
        found = json.loads((folder / "summary.json").read_text("utf-8"))
        return found if found["steps"] == steps and found["last"] else None
    except (OSError, ValueError, KeyError, TypeError):  # it is written anew
        return None


def summarize(job: Job, trainer: Trainer, module: ClipModule, logger: Any, course: Course) -> Summary:
    """Gather the summary of a finished run; called on all ranks."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), None)
    meter = next((one for one in callbacks if isinstance(one, CostMeter)), None)
    previews = next((c.latest for c in callbacks if getattr(c, "latest", None)), None)
    report = throughput.report() if throughput else None
    dtype = next((kind for name, kind in DTYPES.items() if str(trainer.precision).startswith(name)), torch.float32)
    device = trainer.strategy.root_device  # the module itself has left it by now
    folder = shortened(job.folder)
    places = [job.folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    checkpoints = [place.name for place in places if place.is_file()]
    named = replace(job.named, prompt=_prompt(trainer))

    def rates() -> DeviceRates:
        return device_rates(dtype, device) * (trainer.world_size if device.type == "cuda" else 1)

    return Summary(
        folder=folder,
        steps=trainer.global_step,
        wall_seconds=course.seconds,
        first=course.first,
        last={name: float(value) for name, value in trainer.callback_metrics.items()},
        throughput=report,
        rates=None if report is None or report.steps < FEWEST_TIMED else rates(),
        previews=shortened(previews) if previews else None,
        skipped=skipped_clips(trainer),
        tracking_uri=getattr(logger, "uri", None),
        shown=module.results,
        commands=next_commands(module, folder, named) if checkpoints else (),
        checkpoints=checkpoints,
        shards={one.name: size_of(one) for place in places for one in folders_beside(place)},
        own_steps=trainer.global_step - course.first_step,
        page=getattr(logger, "page", None) if trainer.is_global_zero else None,
        cost=None if meter is None else meter.work,
        cost_beside=dict(course.before) | ({} if meter is None else dict(meter.beside)),
    )


def skipped_clips(trainer: Trainer) -> dict[str, str]:
    """The clips that any rank could not read, with reasons; called on all ranks."""
    import torch.distributed as dist

    own = dict(getattr(trainer.datamodule, "corrupt", {}))  # type: ignore[attr-defined]
    if trainer.world_size == 1 or not dist.is_initialized():
        return own
    found: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
    dist.all_gather_object(found, own)
    return {key: reason for skipped in found for key, reason in skipped.items()}


def _prompt(trainer: Trainer) -> str:
    """A caption of the kind that the model has learned, from the first held-out clip."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    captions = data.held_out_captions(1) if isinstance(data, ClipDataModule) else []
    return " ".join(captions[0].split())[:LONGEST_PROMPT] if captions else CliSelection.prompt


def shortened(path: Path) -> Path:
    """Relative to the current folder where that is shorter to type."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
