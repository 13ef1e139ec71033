"""What is recorded with each checkpoint: the configuration inside of it, and beside it that the run was written now."""

import tempfile
from difflib import unified_diff
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from vidlab.lab.runs.resolve import note_written
from vidlab.redaction import redact_tree


def resolved_yaml(cfg: DictConfig) -> str:
    """A configuration as YAML, interpolations resolved and passwords of addresses taken out."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    clean = redact_tree(tree)
    # without passwords, which is the rule, exactly what is composed
    return OmegaConf.to_yaml(cfg, resolve=True) if clean == tree else OmegaConf.to_yaml(OmegaConf.create(clean))


def replaced(tree: Any, old: str, new: str) -> Any:
    """A tree of dicts and lists with one text in place of another in all of its texts."""
    if isinstance(tree, dict):
        return {key: replaced(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, old, new) for value in tree]
    return tree.replace(old, new) if isinstance(tree, str) else tree


def store_config(client: Any, run_id: str, text: str) -> None:
    """Keep a configuration among the files of an MLflow run, as ``MLflowLogger.log_config`` says."""
    names = [Path(file.path).name for file in client.list_artifacts(run_id, "config")]
    if "config.yaml" not in names:
        client.log_text(run_id, text, "config/config.yaml")
        return
    stem = f"config/config-resume-{1 + sum(name.endswith('.yaml') for name in names)}"
    client.log_text(run_id, text, f"{stem}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(client.download_artifacts(run_id, "config/config.yaml", folder)).read_text("utf-8")
    diff = "\n".join(unified_diff(first.splitlines(), text.splitlines(), "first", "resumed", lineterm=""))
    if diff:
        client.log_text(run_id, diff, f"{stem}.diff")


class ConfigRecord(Callback):
    """Stores the resolved configuration as YAML under ``config``, so that a file alone can be generated from.

    Args:
        resolved_yaml: the configuration.
        folder: of the run, whose ``run.json`` then says that it was written now, for ``last`` to find the newest.
    """

    def __init__(self, resolved_yaml: str, folder: Path) -> None:
        self.resolved_yaml, self.folder = resolved_yaml, folder

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.resolved_yaml
        if trainer.is_global_zero:
            note_written(self.folder)
