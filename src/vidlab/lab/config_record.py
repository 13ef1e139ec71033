"""The resolved configuration travels inside the checkpoint, so that a file alone can be generated from."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ConfigRecord(Callback):
    """Stores the resolved configuration as YAML under ``config``."""

    def __init__(self, resolved_yaml: str) -> None:
        self.resolved_yaml = resolved_yaml

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["config"] = self.resolved_yaml
