"""Training starts from published folders alone: their sizes are read, and what is typed stays."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tiny_release import make_release
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_module
from vidlab.lab.init import RunContext
from vidlab.lab.published_sizes import take_published_sizes
from vidlab.layers.layouts import Full3D, GroupSkip, SingleSkip

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


def built(release, *words: str):
    typed = [
        "init=open_sora_plan", f"init.path={release}/any93x640x640", "autoencoder=paper/wfvae_open_sora_plan",
        f"autoencoder.path={release}/vae", "text_encoder.width=16", "data.frames=9", "data.height=16", "data.width=16",
        *words,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", typed)
    take_published_sizes(cfg, typed)
    module = build_module(cfg)
    module.configure_model()
    report = instantiate(cfg.init, "init").apply(module, RunContext("lab", None))
    return cfg, module, report


@pytest.mark.parametrize("model", ["paper/open_sora_plan", "open_sora_plan"])
def test_sizes_and_layouts_come_from_the_folder(release, model):
    cfg, module, report = built(release, f"model={model}")
    backbone = module.denoiser
    assert (backbone.width, backbone.heads, backbone.patch) == (24, 2, (1, 2, 2))
    # the published class attends in full in layers 0 and 1, and from 30 on
    assert [block.layout for block in backbone.transformer_blocks] == [Full3D(), Full3D(), SingleSkip(2), GroupSkip(2)]
    assert module.autoencoder.channels == 4 and module.autoencoder.compat and report.notes == report.fresh == ()
    assert cfg.model.backbone.depth == 4 and cfg.autoencoder.width == 8  # what is recorded needs no folder


def test_layouts_that_are_typed_stay_and_are_told(release):
    _, module, report = built(
        release, "model=paper/open_sora_plan", "model.backbone.layouts.cycle=[{_target_: "
        "vidlab.layers.layouts.Full3D}]"
    )  # fmt: skip
    assert {block.layout for block in module.denoiser.transformer_blocks} == {Full3D()}
    assert report.notes[0].startswith("2 of 4 layers attend otherwise than in ")
    assert "layer 2 is Full3D() here and SingleSkip(k=2) there: training adapts" in report.notes[0]


def test_a_typed_size_that_is_not_the_folders_is_refused(release):
    with pytest.raises(UserError, match=r"describes another model .*num_layers is 4 there and 3 here"):
        built(release, "model=paper/open_sora_plan", "model.backbone.depth=3")
    with pytest.raises(UserError, match=r"autoencoder.width=16 must be 8"):
        built(release, "model=paper/open_sora_plan", "autoencoder.width=16")
