import math
from functools import partial

import pytest
import torch
from torch import nn

from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.text.words import WordsEncoder
from vidlab.training.optimization.optimizers import (
    Constant,
    Cosine,
    LinearDecay,
    OptimizerFactory,
    trainable_parameters,
)


class Small(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.words = nn.Embedding(4, 2)
        self.positions = nn.Parameter(torch.zeros(5, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def factory(**settings) -> OptimizerFactory:
    return OptimizerFactory(**({"algorithm": torch.optim.AdamW, "lr": 0.1, "weight_decay": 0.01} | settings))


def names_by(module: nn.Module, key: str, **settings) -> dict[float, set[str]]:
    found: dict[float, set[str]] = {}
    for group in factory(**settings).groups(module):
        found.setdefault(group[key], set()).update(group["names"])
    return found


def test_decay_is_for_matrices_alone():
    assert names_by(Small(), "weight_decay") == {
        0.01: {"linear.weight"},
        0.0: {"linear.bias", "norm.weight", "norm.bias", "words.weight", "positions"},
    }


def test_gains_tables_and_positions_of_the_real_models_do_not_decay(make_dit):
    module = nn.ModuleDict({"backbone": make_dit(), "text_encoder": WordsEncoder(width=8, heads=2, rows=16)})
    decayed = names_by(module, "weight_decay")[0.01]
    every = {name for name, _ in module.named_parameters()}
    assert {
        n for n in every - decayed if n.endswith(("gain", "offset", "bias", "table.weight", "start", "positions"))
    } == {n for n in every if n.endswith(("gain", "offset", "bias", "table.weight", "start", "positions"))}
    assert {n for n in decayed if not n.endswith(".weight")} == set()
    assert "backbone.embed.weight" in decayed and "backbone.modulation.weight" in decayed


def test_tables_of_any_shape_do_not_decay():
    sizes = {"width": 24, "depth": 2, "heads": 2, "patch": (1, 2, 2), "layouts": LayerPlan((Full3D(),))}
    model = OpenSoraPlan(latent=LatentShape(4, 2, 4, 4), text_width=10, **sizes)
    tables = {name for name, p in model.named_parameters() if name.endswith("scale_shift_table") and p.ndim == 2}
    assert len(tables) == 3 and tables <= names_by(model, "weight_decay")[0.0]


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one():
    module = Small()
    groups = factory(lr_multipliers={"linear.*": 0.5}).groups(module)
    inside = [id(p) for group in groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in trainable_parameters(module))
    assert not set(inside) & {id(p) for p in module.frozen.parameters()}
    names = dict(module.named_parameters())
    assert all(p is names[n] for g in groups for n, p in zip(g["names"], g["params"], strict=True))


def test_multipliers_and_the_first_match():
    found = names_by(Small(), "lr", lr_multipliers={"linear.bias": 3.0, "linear.*": 0.5})
    by_name = {name: lr for lr, names in found.items() for name in names}
    assert by_name["linear.bias"] == pytest.approx(0.3)
    assert by_name["linear.weight"] == pytest.approx(0.05)
    assert by_name["norm.weight"] == pytest.approx(0.1)


def test_the_optimizer_takes_the_groups():
    optimizer = factory(algorithm=partial(torch.optim.AdamW, betas=(0.5, 0.6)), lr_multipliers={"norm.*": 2}).build(
        Small()
    )
    assert {(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups} == {
        (0.1, 0.01, (0.5, 0.6)), (0.1, 0.0, (0.5, 0.6)), (0.2, 0.0, (0.5, 0.6)),
    }  # fmt: skip


def test_one_step_of_decay_by_hand():
    # AdamW with no gradient: only p <- p (1 - lr * decay), and only where decay applies
    module = Small()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    for p in trainable_parameters(module):
        p.grad = torch.zeros_like(p)
    factory(weight_decay=0.5).build(module).step()
    assert module.linear.weight.unique().tolist() == pytest.approx([0.95])
    assert all(p.unique().tolist() == [1.0] for n, p in module.named_parameters() if n != "linear.weight")


@pytest.mark.parametrize("pattern", ["backbone.*", "frozen.*", "linear"])
def test_a_pattern_that_matches_nothing(pattern):
    with pytest.raises(UserError, match=r"optimizer.lr_multipliers: .*match no trainable parameter.*linear.weight"):
        factory(lr_multipliers={pattern: 0.5}).build(Small())


def test_a_pattern_behind_a_wider_one():
    with pytest.raises(UserError, match=r"'linear.weight'.* earlier pattern"):
        factory(lr_multipliers={"linear.*": 0.5, "linear.weight": 2.0}).build(Small())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"optimizer.lr=-1"),
        ({"weight_decay": -0.1}, r"optimizer.weight_decay=-0.1"),
        ({"clip_norm": -1.0}, r"optimizer.clip_norm=-1"),
        ({"clip_norm": 0.0}, r"optimizer.clip_norm=0.*null"),
        ({"lr_multipliers": {"linear.*": -1.0}}, r"optimizer.lr_multipliers.*linear.*-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        factory(**settings)


def test_nothing_to_train():
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        factory().build(nn.Linear(2, 2).requires_grad_(False))


def test_constant_by_hand():
    at = Constant(warmup_steps=4).factor(-1)
    assert [at(step) for step in (0, 1, 2, 3, 4, 1000)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Constant().factor(10)(0) == 1


def test_cosine_by_hand():
    # warm-up 2, then from 2 to 10: half way at 6, a quarter of the way at 4
    at = Cosine(warmup_steps=2, final=0.1).factor(10)
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    expected = [0.5, 1, 1, quarter, 0.55, 0.1, 0.1]
    assert [at(step) for step in (0, 1, 2, 4, 6, 10, 50)] == pytest.approx(expected)


def test_linear_decay_by_hand():
    at = LinearDecay(warmup_steps=2, final=0.2).factor(10)
    assert [at(s) for s in (0, 1, 2, 4, 6, 10, 50)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.2, 0.2])
    assert [LinearDecay().factor(4)(s) for s in range(4)] == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("schedule", [Cosine, LinearDecay])
def test_the_length_of_the_run_is_needed(schedule):
    with pytest.raises(UserError, match=r"set trainer.max_steps"):
        schedule().factor(-1)


@pytest.mark.parametrize("schedule", [Cosine, LinearDecay, Constant])
def test_a_negative_warm_up(schedule):
    with pytest.raises(UserError, match=r"lr_schedule.warmup_steps=-3"):
        schedule(warmup_steps=-3).factor(10)
