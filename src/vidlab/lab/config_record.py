"""The resolved configuration travels inside the checkpoint, so that a file alone can be generated from."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from vidlab.redaction import redact_tree


def resolved_yaml(cfg: DictConfig) -> str:
    """A configuration as YAML, interpolations resolved and passwords of addresses taken out."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    clean = redact_tree(tree)
    # without passwords, which is the rule, exactly what is composed
    return OmegaConf.to_yaml(cfg, resolve=True) if clean == tree else OmegaConf.to_yaml(OmegaConf.create(clean))


class ConfigRecord(Callback):
    """Stores the resolved configuration as YAML under ``config``."""

    def __init__(self, resolved_yaml: str) -> None:
        self.resolved_yaml = resolved_yaml

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["config"] = self.resolved_yaml
