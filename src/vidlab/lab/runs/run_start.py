"""The beginning of a run on record: its folder's files and its MLflow run appear with its first batch, not before.

Everything that can be checked has been checked by then: a mistake leaves nothing to clear away.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from vidlab.data.module import ClipDataModule
from vidlab.files import remove_leftovers, write_text
from vidlab.lab.flops import flops_per_step
from vidlab.lab.runs import provenance
from vidlab.lab.runs.config_record import replaced
from vidlab.lab.runs.job import Job
from vidlab.lab.runs.resolve import newest_record, write_run_record
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.tracking.heartbeat import Heartbeat
from vidlab.lab.tracking.mlflow_page import dataset_of, described
from vidlab.parallel.ranks import data_ranks
from vidlab.redaction import redact_tree
from vidlab.training.module import ClipModule
from vidlab.training.warm_start import WarmStartReport

log = logging.getLogger(__name__)


class RunStart(Callback):
    """Calls ``begin`` on rank 0 once, with the first batch of the first validation or of training.

    Attributes:
        begun: whether the first batch has come.
        first_step: the optimizer step at which training began; 0 before it, and of a run that is not resumed.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin
        self.begun = False
        self.first_step = 0

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The first batch of the validation before training."""
        self._first_batch(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training begins."""
        self.first_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The first batch of a run without validation."""
        self._first_batch(trainer)

    def _first_batch(self, trainer: Trainer) -> None:
        if not self.begun:
            self.begun = True
            if trainer.is_global_zero:
                self._begin()


@dataclass(frozen=True)
class RunRecorder:
    """Writes what a run is, to its folder and to the tracker.

    Args:
        cfg: the configuration.
        text: the same as YAML, from ``resolved_yaml``.
        job: what was asked for.
        logger: of the run.
        data: of the run.
        tags: from ``run_tags``.
        size: how large the run is, in words.
        inherited: what became of the weights it starts from.
        shared: further tags, of what the run shares with others; read from the data once it is there.
        heartbeat: of the run; it begins with its record.
    """

    cfg: DictConfig
    text: str
    job: Job
    logger: Any
    data: LightningDataModule
    tags: Mapping[str, Any]
    size: str
    inherited: WarmStartReport | None
    heartbeat: Heartbeat
    shared: Callable[[], Mapping[str, str]] = dict

    def __call__(self) -> None:
        """Open the MLflow run and write the resolved configuration, revision, versions and hardware."""
        folder, logger, text = self.job.folder, self.logger, self.text
        logger.start()
        self.heartbeat.start()
        for place in (folder, folder / "previews"):
            remove_leftovers(place)
        write_text(folder / "config.yaml", text)
        if self.inherited is not None:
            self.inherited.write(folder / "inherited.json")
        found = provenance.collect(self.job.overrides)
        written = found.write(folder)
        write_run_record(folder, logger.run_id, self.cfg.name, newest_record(RUNS / self.cfg.name))
        # paths below the run folder would differ between any two runs and hide what was changed
        logger.log_hyperparams(
            replaced(redact_tree(OmegaConf.to_container(self.cfg, resolve=True)), str(folder), "<run folder>")
        )
        logger.log_config(text)
        logger.log_artifact(written)
        logger.set_tags(found.tags() | dict(self.tags) | dict(self.shared()) | described(self.job, found))
        if isinstance(self.data, ClipDataModule):
            logger.log_dataset(dataset_of(self.data))
        log.info("run folder %s", folder)
        log.info("%s", self.size)


def run_tags(
    cfg: DictConfig, job: Job, trainer: Trainer, module: ClipModule, data: LightningDataModule
) -> dict[str, Any]:
    """What is trained, in words and numbers worth a column in a table of runs.

    Raises:
        UserError: a bucket of the data that the model cannot take.
    """
    return {
        "vidlab.backbone": cfg.model.name if cfg.get("model") else type(module.autoencoder).__name__,
        **{f"vidlab.{name}": value for name, value in module.tags().items()},
        "vidlab.data": cfg.data.name,
        "vidlab.precision": trainer.precision,
        "vidlab.parameters": module.cost().parameters,
        "vidlab.flops_per_step": f"{flops_per_step(module, data, cfg.data.batch_size, data_ranks(trainer).size):.0f}",
        "vidlab.checkpoints": str(job.folder / "checkpoints"),
    }
