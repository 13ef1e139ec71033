"""What a resumed run changes: settings that decide the data order or the numbers are compared with the checkpoint's."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidlab.command_line import command, setting
from vidlab.errors import UserError
from vidlab.lab.trusted_config import stored_settings

log = logging.getLogger(__name__)

ABSENT = "absent"
RESUMING = ("ckpt_path", "accept_changes")
SHOWN, LONGEST = 20, 80

# Settings that may change freely, with all below them: how long, how often, where to, and what is only shown. The
# rate follows the schedule of the run's own length anyhow. The DataModule sees to clips per step, which change no
# clip, and to what it finds at a path.
FREE = {
    *("name", "experiment", "ckpt_path", "accept_changes", "logger", "init", "sampler", "guidance", "lr_schedule",
      "budget", "activation_offload"),
    *("resume_sweep", "optimizer.lr", "task.log_snr_bins"),
    *(f"data.{key}" for key in ("seed", "num_workers", "cache_decoded_mb", "max_corrupt", "val_clips", "path",
                                "max_megapixels", "max_decoded_mb", "source.max_megapixels",
                                "source.path", "source.cache_dir", "batch_size", "bucketing.tokens_per_batch",
                                "bucketing.step_times")),
    *(f"trainer.{key}" for key in ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs",
                                   "val_check_interval", "check_val_every_n_epoch", "limit_val_batches",
                                   "log_every_n_steps", "num_sanity_val_steps", "enable_model_summary",
                                   "enable_progress_bar", "enable_checkpointing", "default_root_dir", "profiler",
                                   "accelerator", "devices", "num_nodes", "strategy", "sequence_parallel")),
    "objective.time_sampler.share",  # that of sequence_parallel
    *(f"callbacks.{key}" for key in ("checkpoint", "checkpoint_best", "progress", "learning_rate", "previews",
                                     "throughput", "noise_levels", "validate_at_end", "token_bucketing",
                                     "finite_loss", "evaluation")),
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A setting, its value in the checkpoint and its value here."""

    key: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key}: {str(self.there)[:LONGEST]} in the checkpoint, {str(self.here)[:LONGEST]} here"


def check_changes(cfg: DictConfig, state: Mapping[str, Any], checkpoint: Path, typed: Sequence[str] = ()) -> None:
    """Refuse to resume with settings that would change the data order or the numbers, unless ``accept_changes``.

    Args:
        cfg: the settings of this command.
        state: what the checkpoint holds.
        checkpoint: its file.
        typed: the settings of this command, as they were typed.

    Raises:
        UserError: names every such setting with both values, and the whole command that keeps those of the run.
    """
    if "config" not in state:  # not written by train.py; the model and the data still check their own state
        return
    changes = changes_between(stored_settings(state["config"], checkpoint), cfg)
    if not changes:
        return
    listed = "\n".join(f"  {change}" for change in changes[:SHOWN])
    more = f"\n  and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    if cfg.accept_changes:
        log.warning("resuming with changed settings:\n%s%s", listed, more)
        return
    raise UserError(
        f"ckpt_path={cfg.ckpt_path}: {len(changes)} settings differ from the checkpoint's in what decides the data "
        f"order or the numbers:\n{listed}{more}\n{_as_before(cfg, checkpoint, typed)}"
        "Set them back, or go on with them on purpose: accept_changes=true"
    )


def _as_before(cfg: DictConfig, checkpoint: Path, typed: Sequence[str]) -> str:
    """The whole command that continues a run with its own settings, and with those of this command that are free."""
    try:
        record = json.loads((checkpoint.parents[1] / "provenance.json").read_text("utf-8"))
        recorded = [str(word) for word in record["overrides"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # a checkpoint that was copied out of its folder
        return ""
    free = [word for word in typed if _is_free(_key(word))]
    words = [word for word in recorded if _key(word) not in {*map(_key, free), *RESUMING}]
    words += [word for word in free if _key(word) not in RESUMING]
    return f"With the run's own settings: {command('train.py', *words, setting('ckpt_path', cfg.ckpt_path))}\n"


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def changes_between(there: Mapping[str, Any], here: DictConfig) -> list[Change]:
    """The differing settings that are not ``FREE``, in this run's order, then those that only the other has."""
    old, new = _leaves(there), _leaves(OmegaConf.to_container(here, resolve=True))
    keys = [key for key in (new | old) if new.get(key, ABSENT) != old.get(key, ABSENT) and not _is_free(key)]
    return [Change(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:count]) in FREE for count in range(1, len(parts) + 1))


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of values; a group that is null is left out, as one that was never named."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found
