"""Warm starts from real checkpoints and releases, as the group ``init`` does it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vidlab.backbones.dit import DiT
from vidlab.backbones.open_sora_plan_release import read_release
from vidlab.backbones.stiv import STIV
from vidlab.clip import Controls, DenoiserInput
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.lab.export import Origin, export
from vidlab.lab.init import (
    CheckpointSource,
    FreshWeights,
    FromRuns,
    Initializer,
    OpenSoraPlanRelease,
    RunContext,
    from_run,
    merged,
)
from vidlab.layers.layouts import Full3D, GroupSkip, LayerPlan, SingleSkip

HERE = RunContext("lab", None)
SIZES = {"width": 24, "depth": 2, "heads": 2}


@pytest.fixture
def save(tmp_path):
    """Writes a module as a checkpoint; ``ema`` shifts its averaged weights."""

    def write(module, name: str, ema: float | None = 0.5, size=(4, 8, 8)) -> str:
        state = {"state_dict": {k: v for k, v in module.state_dict().items() if k not in module.frozen_keys()}}
        if ema is not None:
            state["ema"] = {n: p.detach() + ema for n, p in module.named_parameters() if p.requires_grad}
        state["config"] = OmegaConf.to_yaml({"data": dict(zip(("frames", "height", "width"), size, strict=True))})
        path = tmp_path / f"{name}.ckpt"
        torch.save(state, path)
        return str(path)

    return write


def dit(*layouts, **settings):
    return partial(DiT, layouts=LayerPlan(layouts), patch=(2, 4, 4), **SIZES, **settings)


def stiv(**settings):
    return partial(STIV, **SIZES, **settings)


def test_full_attention_to_skiparse_has_the_same_keys(make_module, save):
    dense = make_module(backbone=dit(Full3D()))
    sparse = make_module(backbone=dit(SingleSkip(2), GroupSkip(2)))
    report = from_run(save(dense, "dense"), weights="raw").apply(sparse, HERE)
    assert report.fresh == report.adapted == report.unused == report.notes == ()
    for name, parameter in sparse.named_parameters():
        assert torch.equal(parameter, dense.get_parameter(name))
    averaged = from_run(save(dense, "dense")).apply(sparse, HERE)
    assert torch.allclose(sparse.denoiser.embed.bias, dense.denoiser.embed.bias + 0.5) and averaged.fresh == ()


def test_a_new_controller_is_silent_and_its_video_part_a_copy(make_module, save):
    parent = make_module(backbone=dit(Full3D()))
    from vidlab.conditioning.masked_video import MaskedVideo, Stage

    child = make_module(
        built=False, backbone=dit(Full3D()), conditioning=MaskedVideo([Stage({"i2v": 1})])
    )  # fmt: skip
    child.configure_model()
    path = save(parent, "parent")
    with pytest.raises(UserError, match="weights are in none of"):
        from_run(path).apply(child, HERE)
    copies = {"backbone.controls.0.embed.": "backbone.embed."}
    report = from_run(path, weights="raw", fresh=["backbone.controls.*"], copies=copies).apply(child, HERE)
    assert torch.equal(child.denoiser.controls[0].embed.weight, parent.denoiser.embed.weight)
    assert not child.denoiser.controls[0].out.weight.any() and len(report.copied) == 2


def test_a_video_model_from_an_image_model_repeats_it_on_a_still(make_module, save, make_draw):
    image = make_module(backbone=stiv(patch=(1, 4, 4), temporal_attention=False), clip_shape=(1, 8, 8))
    video = make_module(built=False, backbone=stiv(patch=(2, 4, 4)))
    video.configure_model()
    path = save(image, "image", size=(1, 8, 8))
    report = from_run(path, weights="raw", fresh=["backbone.*temporal*"]).apply(video, HERE)
    assert {"backbone.embed.weight", "backbone.head.weight", "backbone.head.bias"} == set(report.adapted)
    assert report.fresh and all("temporal" in name for name in report.fresh)
    (note,) = report.notes
    assert "model.backbone.rope_scale=[4.0, 1.0, 1.0] interpolates" in note
    still = torch.randn(1, 3, 1, 8, 8)
    t = torch.tensor([0.4])

    one = image.denoiser.eval()(DenoiserInput(still, t, 1000 * t)).prediction
    many = video.denoiser.eval()(DenoiserInput(still.expand(1, 3, 4, 8, 8), t, 1000 * t)).prediction
    torch.testing.assert_close(many, one.expand_as(many), atol=1e-5, rtol=1e-4)


def test_temporal_attention_from_one_run_and_the_rest_from_another(make_module, save):
    old, large, new = (make_module(backbone=stiv(patch=(2, 4, 4))) for _ in range(3))
    with torch.no_grad():
        for value, module in ((1.0, old), (2.0, large)):
            for parameter in module.parameters():
                parameter.fill_(value)
    merged(save(large, "large"), save(old, "old"), ["backbone.*temporal*"], weights="raw").apply(new, HERE)
    for name, parameter in new.named_parameters():
        if parameter.requires_grad:
            assert (parameter == (1.0 if "temporal" in name else 2.0)).all(), name


def test_what_is_refused(make_module, save):
    module = make_module(backbone=dit(Full3D()))
    wide = make_module(
        backbone=partial(DiT, layouts=LayerPlan((Full3D(),)), patch=(2, 4, 4), width=36, depth=2, heads=2)
    )
    path = save(module, "module", ema=None)
    with pytest.raises(UserError, match=r"holds no averaged weights. Use init.weights=raw"):
        from_run(path).apply(module, HERE)
    with pytest.raises(UserError, match=r"has shape \(36, 96\) here and \(24, 96\)"):
        from_run(path, weights="raw").apply(wide, HERE)
    with pytest.raises(UserError, match="choose ema or raw"):
        CheckpointSource(path, "best")
    with pytest.raises(UserError, match=r"init.run=nowhere: no such run"):
        from_run("nowhere").apply(module, HERE)


def test_they_are_initializers():
    assert isinstance(FreshWeights(), Initializer) and isinstance(FromRuns({}), Initializer)


def tiny_release(**settings):
    from vidlab.backbones.open_sora_plan import OpenSoraPlan

    plan = LayerPlan((SingleSkip(2), GroupSkip(2)))
    return partial(OpenSoraPlan, layouts=plan, patch=(1, 2, 2), width=24, depth=2, heads=2, **settings)


def test_a_release_goes_out_and_comes_back(make_module, tmp_path):
    from vidlab.conditioning.masked_video import MaskedVideo, Stage

    trained = make_module(backbone=tiny_release())
    export(trained, tmp_path / "release", Origin({}))
    fresh = make_module(backbone=tiny_release())
    report = OpenSoraPlanRelease(str(tmp_path / "release")).apply(fresh, HERE)
    assert report.fresh == report.unused == ()
    for name, parameter in fresh.denoiser.named_parameters():
        assert torch.equal(parameter, trained.denoiser.get_parameter(name))
    # and into the image-conditioned model, as conf/init/open_sora_plan.yaml says
    conf = OmegaConf.load(Path(__file__).parents[2] / "conf" / "init" / "open_sora_plan.yaml")
    child = make_module(built=False, backbone=tiny_release(), conditioning=MaskedVideo([Stage({"i2v": 1})]))
    child.configure_model()
    report = OpenSoraPlanRelease(str(tmp_path / "release"), conf.fresh, conf.copies).apply(child, HERE)
    assert len(report.copied) == 2 and all(name.startswith("pos_embed_mask") for name in report.fresh)
    latents, t = torch.randn(2, 3, 4, 8, 8), torch.rand(2)
    controls = Controls(torch.randn(2, 4, 4, 8, 8), torch.ones(2, 1, 4, 8, 8))
    conditioned = child.denoiser.eval()(DenoiserInput(latents, t, 1000 * t, controls=controls)).prediction
    parent = trained.denoiser.eval()(DenoiserInput(latents, t, 1000 * t)).prediction
    assert (conditioned - parent).abs().max() == 0.0
    with pytest.raises(UserError, match="already holds weights"):
        export(trained, tmp_path / "release", Origin({}))


def test_a_release_fits_one_kind_of_model(make_module, tmp_path):
    with pytest.raises(UserError, match=r"init.path is not set"):
        OpenSoraPlanRelease(None).apply(make_module(), HERE)
    with pytest.raises(UserError, match=r"use model=paper/open_sora_plan"):
        OpenSoraPlanRelease(str(tmp_path)).apply(make_module(), HERE)


def test_any_other_denoiser_is_weights_beside_its_configuration(make_module, tmp_path):
    module = make_module()
    export(module, tmp_path / "out", Origin({"seed": 3}, "raw", 7))
    weights = read_release(tmp_path / "out")
    assert torch.equal(weights["embed.weight"], module.denoiser.embed.weight)
    stored = read_json(tmp_path / "out" / "vidlab.json")
    assert (stored["settings"], stored["weights"], stored["step"]) == ({"seed": 3}, "raw", 7)
