"""What is recorded with each checkpoint: the configuration inside of it, and beside it that the run was written now."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from vidlab.lab.runs import note_written
from vidlab.redaction import redact_tree


def resolved_yaml(cfg: DictConfig) -> str:
    """A configuration as YAML, interpolations resolved and passwords of addresses taken out."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    clean = redact_tree(tree)
    # without passwords, which is the rule, exactly what is composed
    return OmegaConf.to_yaml(cfg, resolve=True) if clean == tree else OmegaConf.to_yaml(OmegaConf.create(clean))


class ConfigRecord(Callback):
    """Stores the resolved configuration as YAML under ``config``, so that a file alone can be generated from.

    Args:
        resolved_yaml: the configuration.
        folder: of the run, whose ``run.json`` then says that it was written now, for ``last`` to find the newest.
    """

    def __init__(self, resolved_yaml: str, folder: Path) -> None:
        self.resolved_yaml, self.folder = resolved_yaml, folder

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["config"] = self.resolved_yaml
        if trainer.is_global_zero:
            note_written(self.folder)
