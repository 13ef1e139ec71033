"""The frozen image model of a video model: trained once and kept, taken out of a run, moved and exchanged."""

import logging
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import DictConfig, OmegaConf
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from test_conf import compose_train
from vidlab.backbones.harivo.lora_files import FILE
from vidlab.errors import UserError
from vidlab.lab.compose import build_data, build_module
from vidlab.lab.export import main as export
from vidlab.lab.image_models.folder import ImageModelRecord
from vidlab.lab.image_models.inputs import give_inputs
from vidlab.lab.image_models.provide import check_objective, provide_image_model
from vidlab.lab.loading import LoadSettings, load_pipeline
from vidlab.lab.planner.plan import plan_training
from vidlab.lab.planner.step import StepMemory
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.lab.train import run_training
from vidlab.randomness import KeyedRNG
from vidlab.training.checkpoint_io import load_checkpoint

TINY = [
    "precision=32-true", "trainer=cpu", "trainer.max_steps=1", "data.batch_size=2", "data.num_workers=0",
    "data.val_clips=2", "data.source.train_clips=8", "data.source.val_clips=4", "data.height=16", "data.width=16",
    "sampler.steps=1", "model.backbone.width=16", "model.backbone.heads=2", "text_encoder.width=16",
    "text_encoder.heads=2", "callbacks.previews=null", "callbacks.noise_levels=null", "callbacks.validate_at_end=null",
    "data.frames=4", "logger=none",
]  # fmt: skip
STEPS = ["model.image_training.max_steps=2", "model.image_training.batch_size=2"]


def composed(folder: Path, *words: str) -> DictConfig:
    return compose_train(folder, *TINY, *words)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def video(checkpoint: Path, **settings) -> torch.Tensor:
    pipeline = load_pipeline(checkpoint, LoadSettings("raw", **settings))
    return pipeline.clips(["a red square"], KeyedRNG(0, ("x",), (0,)))


def test_without_one_a_small_image_model_is_trained_once_and_its_cost_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_training(composed(tmp_path / "one", "model=harivo", *STEPS))
    folders = [path for path in (tmp_path / "cache" / "image_models").iterdir() if path.is_dir()]
    assert len(folders) == 1 and "trained first, 2 steps of 2 pictures" in caplog.text
    record = ImageModelRecord.read(folders[0])
    assert record.objective["parameterization"]["_target_"].endswith("X0Prediction")
    assert record.steps == 2 and record.seconds > 0 and record.training_flops > record.parameters
    assert "apart from this run's cost" in caplog.text
    caplog.clear()
    for words in (
        [],
        ["seed=1"],
        ["trainer.max_steps=7", "data.num_workers=1"],
    ):  # as before
        again = composed(tmp_path / "two", "model=harivo", *STEPS, *words)
        provide_image_model(again)
        assert again.model.image_model == str(folders[0]) == again.model.backbone.image_model.path
    assert "trained first" not in caplog.text
    checkpoint = load_checkpoint(tmp_path / "one" / "checkpoints" / "last.ckpt")
    names = {name.split(".")[1] for name in checkpoint["state_dict"] if name.startswith("backbone.")}
    assert names == {"temporal", "mapping", "frame_tokens", "image_digest"}
    assert not any(name.startswith("text_encoder.") for name in checkpoint["state_dict"])
    assert again.text_encoder.path == str(folders[0] / "text_encoder")


def exchanged_weights(folder: Path, made: Path) -> Path:
    """Another image model of the same kind."""
    shutil.copytree(folder, made)
    (file,) = (made / "unet").glob("*.safetensors")
    weights = load_file(file)
    save_file({name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}, file)
    return made


@pytest.mark.slow
def test_a_run_of_single_frames_is_frozen_moved_and_exchanged(tmp_path, caplog, monkeypatch):
    run_training(composed(tmp_path / "image", "model=harivo_image", "data.images=true"))
    cfg = composed(tmp_path / "video", "model=harivo", f"model.image_model={tmp_path / 'image'}")
    run_training(cfg)
    checkpoint = tmp_path / "video" / "checkpoints" / "last.ckpt"
    folder = Path(cfg.model.image_model)
    made = video(checkpoint)
    assert made.shape == (1, 3, 4, 16, 16)
    other = exchanged_weights(folder, tmp_path / "other")
    moved = folder.rename(folder.with_name("moved"))
    with pytest.raises(UserError, match="there is no file"):
        video(checkpoint)
    assert torch.equal(video(checkpoint, image_model=str(moved)), made)
    caplog.set_level(logging.INFO)
    assert not torch.equal(video(checkpoint, image_model=str(other)), made)
    assert "they move another image model" in caplog.text
    # the memory of a step takes long to find and is checked in tests/lab/planner
    monkeypatch.setattr("vidlab.lab.planner.plan.step_memory", lambda *_: StepMemory(1, 1, 1, 1, 1, 1))
    monkeypatch.setattr("vidlab.lab.planner.plan.matmul_rate", lambda *_, **__: 1e11)
    plan = plan_training(composed(tmp_path / "plan", "model=harivo", f"model.image_model={tmp_path / 'image'}"))
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    # what is saved, without the digest of what is not
    assert plan.trained == sum(value.numel() for name, value in trained.items() if "image_digest" not in name)
    assert plan.frozen > 0 and not plan.notes


def test_single_frames_are_clips_of_one_frame(tmp_path):
    cfg = composed(tmp_path, "model=harivo_image", "data.images=true")
    data, videos = build_data(cfg), build_data(composed(tmp_path, "model=harivo_image"))
    batch, whole = next(iter(data.train_dataloader())), next(iter(videos.train_dataloader()))
    assert batch.size == (1, 16, 16) == build_module(cfg).clip_shape and whole.size == (4, 16, 16)
    assert batch.keys == whole.keys  # the same clips in the same order
    for picture, frames in zip(batch.content[:, :, 0], whole.content, strict=True):
        assert any(torch.equal(picture, frame) for frame in frames.unbind(1))


def test_a_run_of_videos_is_no_image_model(tmp_path):
    run_training(composed(tmp_path / "dit", "model=2p1d", "model.backbone.depth=1"))
    cfg = composed(tmp_path / "video", "model=harivo", f"model.image_model={tmp_path / 'dit'}")
    with pytest.raises(UserError, match="trained a DiT, no image model"):
        provide_image_model(cfg)


def test_no_image_model_and_no_training_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.image_model is not set.*Give a folder of Stable Diffusion 1.5"):
        provide_image_model(composed(tmp_path, "model=harivo", "model.image_training=null"))


def test_another_model_takes_no_image_model(tmp_path):
    run_training(composed(tmp_path / "dit", "model=2p1d", "model.backbone.depth=1"))
    with pytest.raises(UserError, match="the model has no frozen image model"):
        video(tmp_path / "dit" / "checkpoints" / "last.ckpt", image_model="x")


def test_processes_of_a_launcher_are_told_to_train_it_first(tmp_path, monkeypatch):
    cfg = composed(tmp_path, "model=harivo", *STEPS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Train it first: python train"):
        provide_image_model(cfg)


@pytest.mark.slow  # each part of it has tests of its own beside the backbone
def test_a_lora_and_pictures_are_given_when_videos_are_made(tmp_path, capsys):
    run_training(composed(tmp_path / "one", "model=harivo", "model.backbone.lora_rank=2", *STEPS))
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    stored = load_checkpoint(checkpoint)["state_dict"]
    own = [name for name in stored if ".lora_" in name]
    assert own and all(name.startswith("backbone.body.") for name in own)
    pipeline = load_pipeline(checkpoint, LoadSettings("raw"))
    body = dict(pipeline.denoiser.named_parameters())
    assert all(torch.equal(stored[name], body[name.removeprefix("backbone.")]) for name in own)  # reloaded
    plain = video(checkpoint)
    export([str(checkpoint), str(tmp_path / "out"), "--weights", "raw"])
    assert torch.equal(video(tmp_path / "out"), plain)
    expected = get_peft_model_state_dict(pipeline.denoiser.body, adapter_name="default")
    assert expected.keys() == {name.removeprefix("unet.") for name in load_file(tmp_path / "out" / FILE)}
    assert export([str(checkpoint), str(tmp_path / "adapter"), "--weights", "raw", "--motion-adapter"]) == 2
    assert "mapping network before the UNet (mapping_layers=1" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()
    with torch.no_grad():  # one step leaves B all but zero
        for name, parameter in body.items():
            if ".lora_B." in name:
                parameter.normal_()
    pipeline.denoiser.lora.write(pipeline.denoiser.body, tmp_path / "lora")
    pipeline = load_pipeline(checkpoint, LoadSettings("raw"))
    draw = KeyedRNG(0, ("x",), (0,))
    assert torch.equal(pipeline.clips(["a red square"], draw), plain)
    give_inputs(pipeline, {"lora": {"path": str(tmp_path / "lora"), "scale": 1.0}})
    assert not torch.allclose(pipeline.clips(["a red square"], draw), plain, atol=1e-3)
    give_inputs(pipeline, {"lora": {"path": str(tmp_path / "lora"), "scale": 0.0}})
    torch.testing.assert_close(pipeline.clips(["a red square"], draw), plain, atol=1e-5, rtol=0)
    body = pipeline.denoiser.body
    net = ControlNetModel.from_unet(body, "rgb", (16, 32), load_weights_from_unet=False)
    torch.nn.init.ones_(net.controlnet_mid_block.bias)
    net.save_pretrained(tmp_path / "net")
    Image.new("RGB", (20, 10), "navy").save(tmp_path / "edges.png")
    control = {
        "path": str(tmp_path / "net"),
        "pictures": [str(tmp_path / "edges.png")] * 3,
        "frames": None,
        "scale": 1.0,
    }
    give_inputs(pipeline, {"controlnet": control})
    assert pipeline.denoiser.control.frames == (0, 2, 3)  # of four
    assert not torch.allclose(pipeline.clips(["a red square"], draw), plain, atol=1e-3)
    with pytest.raises(UserError, match=r"controlnet.frames=\[4\]: a clip has 4 frames"):
        give_inputs(pipeline, {"controlnet": {**control, "frames": [4]}})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"controlnet": {"path": None, "pictures": "x.png", "frames": None, "scale": 1.0}}, "pictures is set and"),
        ({"lora": {"path": "x", "scale": 1.0}}, "a DiT has no frozen image model"),
    ],
)  # fmt: skip
def test_inputs_that_mean_nothing_are_refused(tmp_path, asked, message):
    module = build_module(composed(tmp_path, "model=2p1d", "model.backbone.depth=1"))
    module.configure_model()
    give_inputs(module.pipeline, {"lora": {"path": None, "scale": 1.0}})  # nothing asked, nothing refused
    with pytest.raises(UserError, match=message):
        give_inputs(module.pipeline, asked)


def test_an_image_model_is_frozen_for_what_it_was_trained_for(tmp_path):
    cfg, noise = composed(tmp_path, "model=harivo"), composed(tmp_path, "model=paper/harivo")
    learned = OmegaConf.to_container(cfg.objective, resolve=True)
    record = partial(ImageModelRecord, None, 1, 1)
    check_objective(cfg, record(objective=learned), "x")
    check_objective(cfg, record(), "x")  # of an earlier version, which did not say
    check_objective(noise, None, "x")
    with pytest.raises(UserError, match="trained for X0Prediction on LinearPath, and this run's objective is Epsilon"):
        check_objective(noise, record(objective=learned), "x")
    with pytest.raises(UserError, match=r"taken for a Stable Diffusion, which predicts noise.*epsilon_scaled_linear"):
        check_objective(cfg, None, "x")
