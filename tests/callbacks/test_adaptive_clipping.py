"""Adaptive clipping in a real Trainer: what a discarded step leaves alone, what is logged, stored and refused."""

import copy
import logging
import os
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from processes import run_ranks
from vidlab.callbacks.adaptive_clipping import AdaptiveClipping
from vidlab.callbacks.ema import EMA
from vidlab.callbacks.finite_loss import FiniteLoss
from vidlab.errors import UserError
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from vidlab.training.optimization.clipping import global_norm
from vidlab.training.optimization.muon import MuonWithAdamW
from vidlab.training.optimization.optimizers import LinearDecay, OptimizerFactory

ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99))
ALGORITHMS = {
    "adamw": ADAMW,
    "fused": partial(ADAMW, fused=True),
    "muon": partial(MuonWithAdamW, matrices=("*blocks.*",)),
    "momentum": partial(torch.optim.SGD, momentum=0.9),
}


def parts(algorithm: str = "adamw", **settings) -> dict:
    factory = OptimizerFactory(ALGORITHMS[algorithm], lr=1e-2, weight_decay=0.1, **settings)
    return {"optimizer": factory, "lr_schedule": LinearDecay()}


def batches(make_batch, count: int, poisoned: tuple[int, ...] = ()) -> list:
    """Batches of clips "a<n>" and "b<n>"; the poisoned ones are of no numbers."""
    made = [make_batch([f"a{n}", f"b{n}"], number=n) for n in range(count)]
    for number in poisoned:
        made[number].pixels.fill_(3e38)  # overflows in the model
    return made


class Watch(Callback):
    """A copy, after each batch, of all that a step may change, and of what is logged."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema
        self.states: list[dict] = []
        self.logged: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        optimizer = trainer.optimizers[0]
        self.states.append(
            copy.deepcopy(
                {
                    "weights": dict(pl_module.state_dict()),
                    "optimizer": optimizer.state_dict(),
                    "rate": [group["lr"] for group in optimizer.param_groups],
                    "schedule": trainer.lr_scheduler_configs[0].scheduler.last_epoch,
                    "ema": self.ema.average,
                }
            )
        )
        self.norms.append(global_norm([p.grad for p in pl_module.parameters() if p.grad is not None]).item())
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def same(first, second) -> bool:
    """Whether nested states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def fit(make_trainer, module, data, steps: int, clipping: AdaptiveClipping | None, **settings) -> Watch:
    watch = Watch(EMA())
    callbacks = [watch.ema, *([clipping] if clipping else []), watch]
    make_trainer(max_steps=steps, callbacks=callbacks, **settings).fit(module, data)
    return watch


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_a_discarded_step_changes_nothing(make_module, make_batch, make_trainer, algorithm):
    clipping = AdaptiveClipping()
    module = make_module(**parts(algorithm))
    watch = fit(make_trainer, module, batches(make_batch, 5, poisoned=(2,)), 5, clipping)
    taken = watch.states
    for key in ("weights", "optimizer", "rate", "schedule", "ema"):
        assert same(taken[2][key], taken[1][key]), key
        for before, after in ((0, 1), (2, 3), (3, 4)):
            assert not same(taken[before][key], taken[after][key]), key
    assert [state["schedule"] for state in taken] == [1, 2, 2, 3, 4]
    assert clipping.discarded_steps == 1 and module.trainer.global_step == 5  # the step counts among those asked for


@pytest.mark.parametrize("accumulate", [1, 2])
def test_discarding_equals_training_without_the_batch(make_module, make_batch, make_trainer, accumulate):
    data = batches(make_batch, 6 * accumulate, poisoned=(2 * accumulate,))
    rest = data[: 2 * accumulate] + data[3 * accumulate :]
    settings = {"accumulate_grad_batches": accumulate}
    factory = {"optimizer": parts()["optimizer"]}  # a rate that does not know the number of steps
    torch.manual_seed(1)
    clipped = fit(make_trainer, make_module(**factory), data, 6, AdaptiveClipping(), **settings).states[-1]
    torch.manual_seed(1)
    plain = fit(make_trainer, make_module(**factory), rest, 5, None, **settings).states[-1]
    assert same(clipped, plain)


def test_a_spike_is_discarded_and_a_calm_run_is_untouched(make_module, make_batch, make_trainer):
    module, data, calm = make_module(**parts()), batches(make_batch, 12), AdaptiveClipping(warmup_steps=0)
    torch.manual_seed(1)
    first = fit(make_trainer, make_module(**parts()), data, 6, calm).states[-1]
    torch.manual_seed(1)
    plain = fit(make_trainer, make_module(**parts()), data, 6, None).states[-1]
    assert calm.discarded_steps == 0 and same(first, plain)
    usual = module.training_step

    def spike(batch, batch_idx=0):
        found = usual(batch, batch_idx)
        return found | {"loss": found["loss"] * (1e4 if batch.number == 8 else 1)}

    module.training_step = spike
    clipping = AdaptiveClipping(warmup_steps=4)
    watch = fit(make_trainer, module, data, 12, clipping)
    assert clipping.discarded_steps == 1
    assert same(watch.states[8]["weights"], watch.states[7]["weights"])
    assert [logged["train/clip/abnormal_ranks"] for logged in watch.logged] == [0] * 8 + [1] + [0] * 3


def test_the_quantities_of_figure_eleven_are_logged(make_module, make_batch, make_trainer):
    clipping = AdaptiveClipping(warmup_steps=2)
    watch = fit(make_trainer, make_module(**parts()), batches(make_batch, 5, poisoned=(0, 4)), 5, clipping)
    logs = [
        {key.removeprefix("train/clip/"): value for key, value in logged.items() if key.startswith("train/clip/")}
        for logged in watch.logged
    ]
    assert set(logs[0]) == {"max_norm", "processed_max", "deviation", "abnormal_ranks"}  # nothing is known yet
    assert set(logs[1]) == set(logs[0]) | {"ema", "ema_variance"}
    assert set(logs[3]) == set(logs[1]) | {"threshold"}
    norms = [logged["max_norm"] for logged in logs]
    assert norms[1] == pytest.approx(watch.logged[1]["train/grad_norm"])
    ema, variance = norms[1], norms[1]
    ema, deviation = 0.99 * ema + 0.01 * norms[2], (norms[2] - (0.99 * ema + 0.01 * norms[2])) ** 2
    variance = 0.99 * variance + 0.01 * deviation
    assert logs[2] == pytest.approx(
        {"max_norm": norms[2], "processed_max": norms[2], "deviation": deviation, "abnormal_ranks": 0, "ema": ema,
         "ema_variance": variance}, rel=1e-5,
    )  # fmt: skip
    assert logs[3]["threshold"] == pytest.approx(ema + 3 * variance**0.5, rel=1e-5)
    assert norms[4] == logs[4]["processed_max"] == 0 and logs[4]["abnormal_ranks"] == 1
    assert logs[4]["ema"] == logs[3]["ema"]


def test_clips_of_a_discarded_batch_are_named(make_module, make_batch, make_trainer, caplog):
    data = batches(make_batch, 8, poisoned=(3, 6))
    with caplog.at_level(logging.WARNING, "vidlab"):
        fit(make_trainer, make_module(**parts()), data, 4, AdaptiveClipping(), accumulate_grad_batches=2)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("vidlab")] == [
        "step 1, rank 0: gradient norm nan, threshold inf: discarded the batch of clips a2, b2, a3, b3",
        "step 3, rank 0: gradient norm nan, threshold inf: discarded the batch of clips a6, b6, a7, b7",
    ]


def test_the_fixed_limit_applies_afterwards(make_module, make_batch, make_trainer):
    clipping, module = AdaptiveClipping(), make_module(**parts(clip_norm=0.01))
    watch = fit(make_trainer, module, batches(make_batch, 3, poisoned=(1,)), 3, clipping)
    assert watch.norms == pytest.approx([0.01, 0, 0.01], rel=1e-3)
    assert clipping.statistics.ema > 0.02  # the statistics are of the norm before it


def test_a_resumed_run_equals_one_that_ran_through(make_module, make_batch, make_trainer, tmp_path):
    path, data = tmp_path / "last.ckpt", batches(make_batch, 20, poisoned=(1, 6))

    def run(steps, data, **settings):
        torch.manual_seed(1)
        clipping, ema, module = AdaptiveClipping(warmup_steps=2), EMA(), make_module(**schedule)
        trainer = make_trainer(max_steps=steps, callbacks=[ema, clipping], plugins=[AtomicCheckpointIO()])
        trainer.fit(module, data, **settings)
        return trainer, clipping, ema, module

    schedule = {"optimizer": parts()["optimizer"]}
    _, through, average, weights = run(9, data)
    first, clipping, *_ = run(4, data)
    first.save_checkpoint(path)
    stored = load_checkpoint(path)
    assert clipping.discarded_steps == 1 and stored["lr_schedulers"][0]["last_epoch"] == 3
    trainer, resumed, ema, module = run(9, data[4:], ckpt_path=path)
    assert trainer.global_step == 9
    assert resumed.state_dict() == through.state_dict() and resumed.statistics.updates == 7
    assert same(ema.average, average.average) and same(dict(module.state_dict()), dict(weights.state_dict()))


def test_patience_ends_a_training_that_discards_everything(make_module, make_batch, make_trainer):
    data = batches(make_batch, 9, poisoned=(1, 2, 4, 5, 6, 7))
    with pytest.raises(UserError, match=r"adaptive_clipping.patience=3: .* up to step 6, .*norms \[nan\]"):
        fit(make_trainer, make_module(**parts()), data, 9, AdaptiveClipping(patience=3))


def refused(make_trainer, make_module, make_batch, message: str, *callbacks: Callback, **settings) -> None:
    trainer = make_trainer(callbacks=[AdaptiveClipping(), *callbacks], **settings)
    with pytest.raises(UserError, match=message):
        trainer.fit(make_module(), [make_batch("ab")])


def test_what_cannot_work_is_refused_before_the_first_batch(make_trainer, make_module, make_batch):
    refused(make_trainer, make_module, make_batch, "callbacks.finite_loss ends the training", FiniteLoss())
    scaled = MixedPrecision("16-mixed", "cpu")  # by name, Lightning would take bf16 on a CPU
    refused(make_trainer, make_module, make_batch, "precision=16-mixed scales .*bf16-mixed", plugins=[scaled])
    with pytest.raises(UserError, match=r"callbacks.adaptive_clipping.patience=0"):
        AdaptiveClipping(patience=0)


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_hide_local_gradients_are_refused(make_module, kind):
    trainer = SimpleNamespace(strategy=object.__new__(kind))  # DeepSpeed need not be installed
    with pytest.raises(UserError, match=rf"{kind.__name__} reduces .*trainer=ddp, or set callbacks.adaptive_clipping="):
        AdaptiveClipping().setup(make_typed(trainer), make_module(), "fit")


def test_a_second_communication_hook_is_refused(make_module):
    strategy = DDPStrategy(ddp_comm_hook=print)
    with pytest.raises(UserError, match="has a ddp_comm_hook"):
        AdaptiveClipping().setup(make_typed(SimpleNamespace(strategy=strategy)), make_module(), "fit")


def test_manual_optimization_is_refused(make_trainer, make_module):
    module = make_module()
    module.automatic_optimization = False
    with pytest.raises(UserError, match="VideoDiffusion takes its optimizer steps itself"):
        AdaptiveClipping().setup(make_trainer(), module, "fit")


def make_typed(trainer: SimpleNamespace) -> Trainer:
    """A Trainer to the run-time type checks."""
    found = object.__new__(type("Stub", (Trainer,), {"strategy": None, "callbacks": []}))
    vars(found).update(vars(trainer))
    return found


class Linear(LightningModule):
    """Fits a line; the batch carries the factor of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        x, factor = batch
        return (self.layer(x) - x.sum(1, keepdim=True)).square().mean() * factor

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


# the factor on the loss of (rank 0, rank 1), by step
FACTORS = {2: (1.0, float("nan")), 4: (float("nan"), float("inf")), 6: (1e5, 1.0), 8: (1e5, 1e5)}


class Weights(Callback):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))


def process(rank: int, port: int, folder: str) -> None:
    """One of two processes of trainer=ddp, as a launcher would start it."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.manual_seed(0)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("vidlab").addHandler(handler)
    clipping, weights = AdaptiveClipping(warmup_steps=2), Weights()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=10, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[clipping, weights], default_root_dir=folder,
    )  # fmt: skip
    source = torch.Generator().manual_seed(rank)
    data = [(torch.randn(16, 3, generator=source), FACTORS.get(step, (1.0, 1.0))[rank]) for step in range(10)]
    trainer.fit(Linear(), torch.utils.data.DataLoader(data, batch_size=None))
    found = {"weights": torch.stack(weights.seen), "lines": lines, "state": clipping.state_dict()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()


def test_two_processes_of_a_real_trainer(commands, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(commands, tmp_path, process, (port, str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["weights"], second["weights"]) and first["state"] == second["state"]
    still = [step for step in range(1, 10) if torch.equal(first["weights"][step], first["weights"][step - 1])]
    assert still == [4, 8] and first["state"]["discarded_steps"] == 2
    named = [[(line.split(",")[0], line.rsplit(" batch ")[-1]) for line in run["lines"]] for run in (first, second)]
    assert named == [
        [("step 4", "4"), ("step 6", "6"), ("step 8", "8")],
        [("step 2", "2"), ("step 4", "4"), ("step 8", "8")],
    ]
