"""``init=parents``: which weights of which parent a new model has, by the part that its backbone declares."""

from functools import partial

import pytest
import torch

from vidlab.backbones.stiv import STIV
from vidlab.errors import UserError
from vidlab.lab.init import Initializer, RunContext
from vidlab.lab.stages.parts import FromParents, temporal_names

HERE = RunContext("lab", None)
VIDEO = {"patch": (2, 4, 4), "micro_conditions": ("original_resolution", "frames")}
IMAGE = {"patch": (1, 4, 4), "micro_conditions": ("original_resolution",), "temporal_attention": False}


@pytest.fixture
def model(make_module, tmp_path):
    """Builds STIV; ``value`` writes it as a checkpoint whose averaged weights are all that number."""

    def build(settings, value=None):
        module = make_module(backbone=partial(STIV, width=24, depth=2, heads=2, **settings))
        if value is None:
            return module
        state = {k: v for k, v in module.state_dict().items() if k not in module.frozen_keys()}
        ema = {n: torch.full_like(p, value) for n, p in module.named_parameters() if p.requires_grad}
        torch.save({"state_dict": state, "ema": ema}, path := tmp_path / f"{value}.ckpt")
        return str(path)

    return build


def values(module) -> dict[str, set[float]]:
    return {
        name: set(p.detach().flatten().tolist())
        for name, p in module.named_parameters()
        if p.requires_grad and not name.startswith(("backbone.embed", "backbone.head."))  # inflated
    }


def test_two_parents_give_space_and_time(model):
    module = model(VIDEO)
    runs = {"images": model(IMAGE, 1.0), "videos": model(VIDEO, 2.0)}
    parts = {"images": "all_but_temporal_attention", "videos": "temporal_attention"}
    init = FromParents(runs, parts)
    assert isinstance(init, Initializer)
    report = init.apply(module, HERE)
    temporal = temporal_names(module)
    assert {name.split(".")[3] for name in temporal} == {"temporal", "frames"}
    assert {name: {2.0 if name in temporal else 1.0} for name in values(module)} == values(module)
    assert report.fresh == ()
    assert set(report.adapted) == {"backbone.embed.weight", "backbone.head.weight", "backbone.head.bias"}


def test_an_image_model_leaves_time_as_drawn(model):
    module = model(VIDEO)
    drawn = {name: p.detach().clone() for name, p in module.named_parameters()}
    images = model(IMAGE, 1.0)
    report = FromParents({"images": images}, {"images": "all_but_temporal_attention"}).apply(module, HERE)
    assert set(report.fresh) == temporal_names(module)
    assert all(torch.equal(p, drawn[name]) for name, p in module.named_parameters() if name in report.fresh)
    with pytest.raises(UserError, match=r"weights are in none of .*temporal"):  # an image model cannot give all
        FromParents({"images": images}, {"images": "all"}).apply(module, HERE)
    with pytest.raises(UserError, match="weights are in none of"):  # nor a video model's attention alone
        FromParents({"videos": model(VIDEO, 2.0)}, {"videos": "temporal_attention"}).apply(module, HERE)


def test_parts_are_names_that_a_model_declares(model, make_module):
    with pytest.raises(UserError, match="choose all"):
        FromParents({"a": "x"}, {"a": "blocks.*"})
    with pytest.raises(UserError, match="name the same"):
        FromParents({"a": "x"}, {"b": "all"})
    with pytest.raises(UserError, match="declares no temporal attention"):
        FromParents({"a": "x"}, {"a": "temporal_attention"}).apply(make_module(), HERE)
