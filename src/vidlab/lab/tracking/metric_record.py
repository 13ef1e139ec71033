"""No metric of a step that a checkpoint has seen is lost to a kill."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vidlab.lab.tracking.mlflow_logger import MLflowLogger

KEY = "metrics_of_step"


class MetricRecord(Callback):
    """Settles the logger's queue before a checkpoint is written, and keeps in it what Lightning logs only afterwards.

    Lightning hands a step's metrics to loggers after the callbacks of its end, hence after the step's checkpoint: a run
    that is killed in between, and resumed behind that step, would never log them. They travel under
    ``metrics_of_step``, and loading the checkpoint logs those that the store does not have.

    Args:
        logger: of the run.
    """

    def __init__(self, logger: MLflowLogger) -> None:
        self._logger = logger

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Settle, and add ``{"step": int, "values": {name: float}}`` where a step is about to be logged."""
        self._logger.settle()
        values = _about_to_be_logged(trainer)
        if values:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            checkpoint[KEY] = {"step": step, "values": values}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log what is missing."""
        if KEY in checkpoint:
            self._logger.fill(checkpoint[KEY]["values"], checkpoint[KEY]["step"])


def _about_to_be_logged(trainer: Trainer) -> dict[str, float]:
    """What the end of this training batch will log; nothing outside of a batch, and between the logging intervals."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    progress = loop.batch_progress.current
    in_a_batch = trainer.training and progress.processed == progress.completed + 1  # type: ignore[attr-defined]
    if not in_a_batch or trainer._results is None or loop._should_accumulate() or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}
