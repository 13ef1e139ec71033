"""What a training command asks for: where it writes, what it continues, how its parts are asked for again."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from vidlab.command_line import command, setting
from vidlab.lab.runs.next_commands import CliSelection
from vidlab.lab.runs.resolve import Run, resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.sweeps.membership import Membership, check_ckpt_path, membership
from vidlab.lab.trusted_config import own_classes
from vidlab.redaction import redact


@dataclass(frozen=True)
class Job:
    """Where a run writes, what it continues, the command that asked for it, without passwords, and its sweep."""

    folder: Path
    overrides: tuple[str, ...]
    resumed: Run | None
    named: CliSelection
    sweep: Membership | None = None

    @property
    def command(self) -> str:
        """The command of the run, as it can be pasted into a shell; of a job of a sweep, the job's."""
        return command("train.py", *self.overrides)


def is_sweep() -> bool:
    """Whether this is a job that a sweep has launched."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def find_job(cfg: DictConfig) -> Job:
    """The run folder Hydra has made, and the run to continue.

    Raises:
        UserError: there is no such run, or a sweep cannot do what is asked.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    uri, sweep = cfg.logger.get("uri"), membership(folder)
    resumed = resolve_run(cfg.ckpt_path, RUNS, cfg.name, uri) if cfg.ckpt_path else None
    if resumed is not None and is_sweep():
        check_ckpt_path(cfg.ckpt_path, resumed.folder, folder)
    overrides = tuple(map(redact, hydra.overrides.task))
    return Job(folder, overrides, resumed, _as_typed(cfg, hydra.runtime.choices, overrides), sweep)


def _as_typed(cfg: DictConfig, choices: DictConfig, overrides: tuple[str, ...]) -> CliSelection:
    """How a later command asks for this run's data and for an autoencoder of its sizes."""
    path = [setting("data.path", str(cfg.data.path))] if cfg.data.get("path") else []
    sizes = [one for one in overrides if re.match(r"autoencoder\.(?!path|start|scale|shift)", one)]
    own = own_classes(cfg)
    allow = (setting("allow", own),) if own else ()
    return CliSelection((f"data={choices.data}", *path), (f"autoencoder={choices.autoencoder}", *sizes), allow)
