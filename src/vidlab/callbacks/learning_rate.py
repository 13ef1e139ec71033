"""Logs the learning rate as one curve, however many parameter groups there are."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

NAME = "train/learning_rate"


class LearningRate(Callback):
    """Logs the rate of each step as one curve, however many groups of parameters an optimizer has.

    Groups differ by a constant factor (``optimizer.lr_multipliers``), so that the largest tells all. A second
    optimizer, as of a discriminator, has a curve of its own where its rate is another.

    Logs:
        train/learning_rate, and train/learning_rate_2 of a second optimizer.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log at the trainer's interval, before the step takes the schedule on."""
        if not trainer._logger_connector.should_update_logs:
            return
        rates = [max(group["lr"] for group in optimizer.param_groups) for optimizer in trainer.optimizers]
        names = (NAME if place == 0 else f"{NAME}_{place + 1}" for place in range(len(rates)))
        shown = {name: rate for place, (name, rate) in enumerate(zip(names, rates, strict=True))
                 if place == 0 or rate != rates[0]}  # fmt: skip
        for logger in trainer.loggers:
            logger.log_metrics(shown, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
