from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vidlab.callbacks.noise_levels import LossByNoiseLevel
from vidlab.errors import UserError


def logged(callback: LossByNoiseLevel, *batches: tuple[list, list[float]], parts=()) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    logger = Mock()
    logger.log_metrics.side_effect = lambda metrics, step: found.append(metrics)
    for step, (t, losses) in enumerate(batches, start=1):
        trainer = Mock(spec=Trainer, global_step=step, loggers=[logger])
        trainer.strategy.reduce.side_effect = lambda sums, reduce_op: sums
        outputs = {"t": torch.tensor(t), "per_clip": torch.tensor(losses)}
        outputs |= {"part": parts[step - 1]} if parts else {}
        callback.on_train_batch_end(trainer, Mock(spec=LightningModule), outputs, None, 0)
    return found


def test_means_by_bin_over_an_interval_by_hand():
    callback = LossByNoiseLevel(bins=2, every_n_steps=2)
    found = logged(callback, ([0.1, 0.9], [1.0, 4.0]), ([0.4, 0.45], [2.0, 3.0]), ([1.0], [7.0]), ([0.5], [9.0]))
    assert found == [
        {"train/loss_at_t/0": pytest.approx(2.0), "train/loss_at_t/0.5": pytest.approx(4.0)},
        {"train/loss_at_t/0.5": pytest.approx(8.0)},  # t = 1 belongs to the last bin; an empty bin is left out
    ]


def test_means_by_part_by_hand():
    batches = ([0.1, 0.1], [1.0, 4.0]), ([0.2], [float("nan")]), ([0.3], [2.0]), ([0.4], [5.0])
    found = logged(LossByNoiseLevel(1, 2), *batches, parts=("stage_1", "stage_0", "stage_0", "stage_0"))
    assert [{n: v for n, v in one.items() if "stage" in n} for one in found] == [
        {"train/loss/stage_1": 2.5},  # stage_0 had no clip whose loss is a number
        {"train/loss/stage_0": 3.5},
    ]


def test_levels_per_frame_count_by_their_mean():
    assert logged(LossByNoiseLevel(4, 1), ([[0.0, 0.6]], [5.0])) == [{"train/loss_at_t/0.25": pytest.approx(5.0)}]


def test_what_is_not_finite_does_not_count():
    assert logged(LossByNoiseLevel(1, 1), ([0.1, 0.2, 0.3], [1.0, float("nan"), 3.0])) == [
        {"train/loss_at_t/0": pytest.approx(2.0)}
    ]


def test_a_window_is_logged_once_and_from_all_its_batches(make_module, make_batch, make_trainer):
    found = []
    logger = Mock(name="logger", root_dir=None)
    logger.log_metrics.side_effect = lambda metrics, step: found.append((step, metrics))
    callback = LossByNoiseLevel(bins=1, every_n_steps=2)
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            seen.extend(outputs["per_clip"].tolist())

    trainer = make_trainer(max_steps=4, accumulate_grad_batches=3, callbacks=[Watch(), callback])
    trainer.fit_loop.epoch_loop._should_check_val_fx = lambda *_: False
    trainer.loggers = [logger]
    trainer.fit(make_module(), [make_batch("ab", number=n) for n in range(12)])
    ours = [(step, metrics) for step, metrics in found if "train/loss_at_t/0" in metrics]
    assert [step for step, _ in ours] == [2, 4]
    assert [m["train/loss_at_t/0"] for _, m in ours] == [pytest.approx(sum(s) / 12) for s in (seen[:12], seen[12:])]


def test_settings_are_at_least_one():
    with pytest.raises(UserError, match=r"callbacks.noise_levels.bins=0"):
        LossByNoiseLevel(bins=0)
