"""init=mamba_from_attention from checkpoints: what is taken, what is copied, what is fresh, and all of it told."""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim import MMDiM
from vidlab.errors import UserError
from vidlab.lab.init import RunContext, mamba_from_attention
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.layers.mixers.ssd_mixer import SSDMixer

HERE = RunContext("lab", None)
FRESH = OmegaConf.load(Path(__file__).parents[2] / "conf" / "init" / "mamba_from_attention.yaml").fresh
SIZES = {"width": 24, "depth": 2, "heads": 2, "patch": (2, 4, 4)}


def mmdim(mixer=SSDMixer, **settings):
    return partial(MMDiM, mixer=mixer, dual_depth=1, **(SIZES | settings))


@pytest.fixture
def save(tmp_path):
    def write(module) -> str:
        state = {"state_dict": {k: v for k, v in module.state_dict().items() if k not in module.frozen_keys()}}
        state["config"] = OmegaConf.to_yaml({"data": {"frames": 4, "height": 8, "width": 8}})
        torch.save(state, tmp_path / "run.ckpt")
        return str(tmp_path / "run.ckpt")

    return write


def test_a_run_of_the_same_model_with_attention(make_module, save):
    trained, module = make_module(backbone=mmdim(AttentionMixer)), make_module(backbone=mmdim())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    report = mamba_from_attention(save(trained), "raw", fresh=FRESH).apply(module, HERE)
    parts = {"conv.weight", "conv.bias", "A_log", "dt_bias", "D"}
    assert set(report.fresh) == {f"backbone.blocks.{i}.mixer.{part}" for i in range(2) for part in parts}
    assert report.copied == tuple(
        f"backbone.blocks.{i}.mixer.in_proj.{kind} (rows C, B, x) <- backbone.blocks.{i}.mixer.qkv.{kind}"
        for i in range(2) for kind in ("weight", "bias")
    )  # fmt: skip
    (taken,) = report.taken.values()
    named = dict(module.named_parameters())
    assert len(taken) + len(report.copied) + len(report.fresh) == sum(p.requires_grad for p in named.values())
    assert {name.rpartition(".mixer.")[2] for name in report.unused} == {"q_norm.gain", "k_norm.gain"}
    for name in taken:
        assert torch.equal(named[name], trained.get_parameter(name)), name
    mixer = module.denoiser.blocks[0].mixer
    drawn = before["backbone.blocks.0.mixer.in_proj.weight"]
    for row in ("z", "dt"):
        assert torch.equal(mixer.in_proj.weight[mixer.rows[row]], drawn[mixer.rows[row]])
    assert "4 copied" in report.text() and "10 fresh" in report.text()


def test_a_run_of_a_diffusion_transformer(make_module, save):
    dit = partial(DiT, layouts=LayerPlan((Full3D(),)), **(SIZES | {"depth": 4}))
    trained, module = make_module(backbone=dit), make_module(backbone=mmdim())
    report = mamba_from_attention(save(trained), "raw", fresh=FRESH).apply(module, HERE)
    assert torch.equal(module.denoiser.embed.weight, trained.denoiser.embed.weight)
    for name, weight in trained.text_encoder.named_parameters():
        assert torch.equal(module.text_encoder.get_parameter(name), weight)
    joined = "backbone.blocks.0.out.weight <- backbone.blocks.1.attention.out.weight + backbone.blocks.1.mlp.2.weight"
    assert joined in report.copied
    assert any(name.endswith("backbone.blocks.3.mlp.0.weight") for name in report.unused)  # one block too many
    assert {
        part for name in report.fresh for part in ("text.", "pooled", "registers", "temporal", "mixer") if part in name
    }


def test_what_is_refused(make_module, save):
    shallow = partial(DiT, layouts=LayerPlan((Full3D(),)), **SIZES)
    path = save(make_module(backbone=shallow))
    with pytest.raises(UserError, match=r"weights are in none of .*backbone.blocks.1"):
        mamba_from_attention(path, "raw", fresh=FRESH).apply(make_module(backbone=mmdim()), HERE)
    with pytest.raises(UserError, match="use model=mmdim"):
        mamba_from_attention(path, "raw").apply(make_module(), HERE)
    with pytest.raises(UserError, match="holds no averaged weights"):
        mamba_from_attention(path).apply(make_module(backbone=mmdim()), HERE)
