"""The planner: what it says is what a step takes, it fits in a table, and it leaves nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig, open_dict

from cli.command import Commands
from vidlab.errors import UserError
from vidlab.lab.compose import build_module
from vidlab.lab.planner.plan import (
    BucketCost,
    TrainingPlan,
    exchanged_by_shards,
    exchanged_bytes,
    plan_training,
)
from vidlab.lab.planner.report import row, text_of
from vidlab.lab.planner.step import StepMemory, step_memory
from vidlab.lab.planner.table import table, write_row
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.training.optimization.fully_sharded import ShardedWeights

ROOT = Path(__file__).parents[3]
TINY = (
    "trainer=cpu", "precision=32-true", "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1",
    "data.batch_size=2",
)  # fmt: skip
MEMORY = StepMemory(100, 100, 100, 200, 500, 1000)
PLAN = TrainingPlan(
    1000, 0, (BucketCost((8, 32, 32), 16, 1.0, 2048, 1e9),), MEMORY, "cpu", 10**12, 0, 400, 100, 1e9, ()
)  # fmt: skip


@pytest.fixture(autouse=True)
def rate_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that measure this machine, here not for every plan: tests/cost/test_rates.py."""
    monkeypatch.setattr("vidlab.lab.planner.plan.matmul_rate", lambda *_, **__: 1e11)


def planned(*words: str) -> TrainingPlan:
    return plan_training(composed(*words))


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["hydra.mode=RUN", *words], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "unused"
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def test_gradients_optimizer_average_and_checkpoint() -> None:
    plan = planned(*TINY, "optimizer=adamw", "trainer.max_steps=7")
    tensors = plan.memory.optimizer - 8 * plan.trained  # two moments, and the number of steps of each tensor
    assert plan.memory.gradients == 4 * plan.trained == plan.memory.average
    assert 0 < tensors < 4 * 200 and tensors % 4 == 0
    assert plan.checkpoint == 16 * plan.trained + tensors
    assert plan.frozen == 0 and plan.steps == 7 and plan.exchanged == 0
    assert plan.seconds == pytest.approx(7 * plan.flops_per_step / plan.rate)


@pytest.mark.slow
def test_recomputation_and_accumulation() -> None:
    words = [*TINY, "model.backbone.depth=4", "data.batch_size=16"]
    plain = planned(*words).memory
    assert planned(*words, "model.backbone.activation_checkpointing=true").memory.activations < 0.7 * plain.activations
    twice = planned(*words, "trainer.accumulate_grad_batches=2").memory
    # the gradients of the first batch are there while the second is computed, which plain steps have at the end alone
    assert plain.peak <= twice.peak <= plain.peak + 1.25 * plain.gradients + 1


def test_offloaded_activations_lie_in_main_memory() -> None:
    found = {}
    for offload in (False, True):
        cfg = composed(*TINY, "model.backbone.depth=2", "data.batch_size=64", f"activation_offload={offload}")
        module = build_module(cfg)
        with torch.device("meta"):
            module.configure_model()
        found[offload] = step_memory(module, module.clip_shape, 64, 1, Precision(), "cpu")  # sizes are those of a GPU
    plain, moved = found[False], found[True]
    assert plain.offloaded == 0 and (plain.weights, plain.optimizer) == (moved.weights, moved.optimizer)
    assert moved.activations < 0.5 * plain.activations < moved.activations + moved.offloaded
    text = text_of(replace(PLAN, memory=moved, device="cuda", available=0))
    assert "of activations in main memory" in text and "activation_offload=true" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(TINY, "this run computes on the CPU"), ((*TINY, "compile=true"), "compile=True the compiler")],
)
def test_offload_is_refused_where_it_cannot_be(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(*words, "activation_offload=true")


def test_budgets_give_the_steps() -> None:
    plan = planned(*TINY, "budget=samples", "budget.value=101", "trainer.accumulate_grad_batches=3")
    assert plan.steps == 17  # of 6 clips


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget.value=1"], r"budget.value=1: one step of this run costs 2 clips"),
        (
            ["budget.value=101", "trainer.max_steps=7"],
            r"trainer.max_steps=7 ends the run before its budget of 101 clips",
        ),
    ],
)
def test_budgets_that_training_refuses(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(*TINY, "budget=samples", *words)


def test_an_average_that_is_not_kept() -> None:
    assert planned(*TINY, "callbacks.ema=null").memory.average == 0


def test_exchanged_bytes() -> None:
    assert [exchanged_bytes(800, ranks) for ranks in (1, 2, 8)] == [0, 800, 1400]


def test_what_a_device_keeps_and_sends_of_shards() -> None:
    weights = ShardedWeights(kept=80, gathered=60, averaged=100, whole=30)
    assert MEMORY.sharded(weights, 4) == StepMemory(40, 25, 25, 50, 530, 805)
    assert MEMORY.sharded(replace(weights, whole=0), 1) == MEMORY
    assert exchanged_by_shards(weights, 4, 2) == 330  # 2 batches, 3/4 of 2 x 60 + 100


def test_shards_of_a_run() -> None:
    plan = planned(*TINY[1:], "trainer=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2", "optimizer=adamw")
    assert plan.memory.gradients == 2 * plan.trained == plan.memory.average  # half of float32
    assert 16 * plan.trained <= plan.checkpoint < 16 * plan.trained + 1000
    assert plan.exchanged == 6 * plan.trained and "and twice of the weights" in text_of(plan)


def test_clips_that_are_shared() -> None:
    words = (*TINY[1:], "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sequence_parallel=2")
    plan = planned(*words, "model=skiparse")
    layer, text = plan.sharing[0], text_of(plan)
    assert plan.tokens_per_step == 2 * 128 and layer.count == len(plan.sharing) == 1
    # 2 clips whose tokens, 48 wide, send q, k, v and what attention returns of one head in two, forward and backward
    assert layer.sent == 2 * 128 * 48 * 4 // 2 * 2 * 4 // 2
    assert layer.layout in text and "activations are those of whole clips" in text
    with pytest.raises(UserError, match=r"trainer\.sequence_parallel=2: MMDiM does not share"):
        planned(*words, "model=mmdim")


def test_autoencoders_are_not_planned() -> None:
    with pytest.raises(UserError, match="plans trainings of denoisers"):
        planned("task=autoencoder", "trainer=cpu")


def test_the_warning() -> None:
    assert "WARNING" not in text_of(PLAN)
    small = replace(PLAN, available=10**6)
    assert not small.fits and "WARNING: it needs 900 MB and there are 1 MB." in text_of(small)
    assert "(!)" in row(small, ())["memory"]


def test_buckets_are_told_apart() -> None:
    both = replace(
        PLAN, buckets=(BucketCost((8, 32, 32), 16, 0.25, 2000, 4e9), BucketCost((1, 32, 32), 32, 0.75, 400, 8e8))
    )
    assert both.tokens_per_step == 800 and both.flops_per_step == 1.6e9
    assert "1x32x32" in text_of(both) and "75.0 % of steps" in text_of(both)


def test_the_table_of_a_sweep(tmp_path: Path) -> None:
    for number, model in enumerate(("2p1d", "full3d")):
        write_row(tmp_path / str(number), row(PLAN, ("plan=true", f"model={model}", "seed=0")))
    head, *lines = table(tmp_path).splitlines()
    assert head.split()[:2] == ["model", "trained"] and [line.split()[0] for line in lines] == ["2p1d", "full3d"]
    assert table(tmp_path / "none") == ""


def test_a_sweep_of_plans_leaves_nothing(commands: Commands, tmp_path: Path) -> None:
    words = ["plan=true", "-m", "model=2p1d,full3d", *TINY]
    done = commands.run("train.py", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-3].split()[:2] == ["model", "trained"]
    assert not list(tmp_path.iterdir())


CASES = (
    ("model=2p1d", "precision=32-true", "data.batch_size=24"),
    *(
        (f"model={model}", f"precision={precision}", "data.batch_size=16")
        for model in ("2p1d", "full3d", "skiparse", "mmdim")
        for precision in ("32-true", "bf16-mixed")
    ),
    ("model=harivo", "precision=32-true", "data.batch_size=8"),
    ("model=harivo", "precision=bf16-mixed", "data.batch_size=8"),
    ("model=full3d", "precision=32-true", "data.batch_size=48", "model.backbone.activation_checkpointing=true"),
    ("model=mmdim", "precision=bf16-mixed", "data.batch_size=64", "model.backbone.activation_checkpointing=true"),
    ("model=harivo", "precision=32-true", "data.batch_size=8", "model.backbone.activation_checkpointing=true"),
    ("model=full3d", "precision=32-true", "data.batch_size=24", "model.backbone.activation_checkpointing=selective"),
    ("model=full3d", "precision=bf16-mixed", "data.batch_size=32", "model.backbone.activation_checkpointing=selective"),
    ("model=2p1d", "precision=32-true", "data.batch_size=16", "trainer.accumulate_grad_batches=2"),
    ("model=mmdim", "precision=32-true", "data.batch_size=32"),
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("words", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_the_peak_is_the_measured_one(words: tuple[str, ...], commands: Commands, tmp_path: Path) -> None:
    if "bf16-mixed" in words[1] and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this CPU has no bf16 products")
    done = commands.run("tests/lab/planner/measure_peak.py", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    measured = int(next(line.split()[1] for line in done.out.splitlines() if line.startswith("peak ")))
    predicted = planned(*words, "trainer=cpu").memory.peak
    assert predicted == pytest.approx(measured, rel=0.15), json.dumps([predicted, measured])
