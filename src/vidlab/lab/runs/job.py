"""What a training command asks for: where it writes, what it continues, how its parts are asked for again."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from vidlab.command_line import command, setting
from vidlab.errors import UserError
from vidlab.lab.runs.next_commands import CliSelection
from vidlab.lab.runs.resolve import Run, resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import own_classes
from vidlab.redaction import redact


@dataclass(frozen=True)
class Job:
    """Where a run writes, what it continues, and the command that asked for it, without passwords."""

    folder: Path
    overrides: tuple[str, ...]
    resumed: Run | None
    named: CliSelection

    @property
    def command(self) -> str:
        """The command of the run, as it can be pasted into a shell; of a job of a sweep, the job's."""
        return command("train.py", *self.overrides)


def find_job(cfg: DictConfig) -> Job:
    """The run folder Hydra has made, and the run to continue.

    Raises:
        UserError: there is no such run, or a sweep cannot do what is asked.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        _check_sweep(cfg)
    uri = cfg.logger.get("uri")
    resumed = resolve_run(cfg.ckpt_path, RUNS, cfg.name, uri) if cfg.ckpt_path else None
    overrides = tuple(map(redact, hydra.overrides.task))
    return Job(Path(hydra.runtime.output_dir), overrides, resumed, _as_typed(cfg, hydra.runtime.choices, overrides))


def _check_sweep(cfg: DictConfig) -> None:
    if cfg.ckpt_path:
        raise UserError(
            f"ckpt_path={cfg.ckpt_path}: a run is continued by one command, not by the jobs of a sweep, which would "
            "all write into it. Leave -m out, with one value for each setting; or begin new runs from its weights with "
            f"{setting('init.run', cfg.ckpt_path)} init=from_run in place of ckpt_path."
        )
    if _launches_processes(cfg):
        raise UserError(
            "trainer=ddp with more than one device cannot be launched by --multirun: each process would start the "
            "whole sweep again. Launch each job on its own, or start the sweep's jobs with torchrun or submitit."
        )


def _as_typed(cfg: DictConfig, choices: DictConfig, overrides: tuple[str, ...]) -> CliSelection:
    """How a later command asks for this run's data and for an autoencoder of its sizes."""
    path = [setting("data.path", str(cfg.data.path))] if cfg.data.get("path") else []
    sizes = [one for one in overrides if re.match(r"autoencoder\.(?!path|start|scale|shift)", one)]
    own = own_classes(cfg)
    allow = (setting("allow", own),) if own else ()
    return CliSelection((f"data={choices.data}", *path), (f"autoencoder={choices.autoencoder}", *sizes), allow)


def _launches_processes(cfg: DictConfig) -> bool:
    import os

    several = str(cfg.trainer.get("devices", 1)) not in ("1", "[0]")
    return several and "ddp" in str(cfg.trainer.get("strategy", "")) and "LOCAL_RANK" not in os.environ
