"""Denoisers on latents of 1 + 4n frames."""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.backbones.dit import DiT
from vidlab.clip import Stride
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.masked_video import MaskedVideo, Stage
from vidlab.errors import UserError
from vidlab.lab.compose import locate_autoencoder, make_backbone
from vidlab.layers.layouts import Full3D, LayerPlan

TINY = {"latent_channels": 4, "width": 4, "encoder_energy": 4, "decoder_energy": 4, "encoder_blocks": 1,
        "decoder_blocks": 1}  # fmt: skip
SIZE = (9, 16, 16)


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"autoencoder.{k}": v for k, v in WFVAE(**TINY).state_dict().items()}}, file)
    return file


@pytest.fixture
def make_causal(make_module, weights):
    def make(**parts):
        backbone = FITTING
        autoencoder = WFVAE(**TINY, path=str(weights), dropout=0.5)
        return make_module(**{"autoencoder": autoencoder, "backbone": backbone, "clip_shape": SIZE, **parts})

    return make


FITTING = partial(DiT, layouts=LayerPlan((Full3D(),)), width=12, depth=1, heads=2, patch=(1, 1, 1))


def masked_video(task="i2v") -> MaskedVideo:
    return MaskedVideo(stages=[Stage({task: 1.0})], clean=1.0)


@pytest.mark.parametrize("conditioning", [None, FrameReplacement(), masked_video()], ids=["none", "replaced", "masked"])
def test_a_step_and_a_sample(make_causal, make_batch, make_draw, conditioning, monkeypatch):
    module, batch = make_causal(conditioning=conditioning), make_batch(size=SIZE)
    assert module.latent.frames == 3 and module.denoiser.token_count(module.latent) == 3 * 2 * 2
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "count", lambda *_: None)
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    assert loss.isfinite() and all(p.grad is None for p in module.autoencoder.parameters())
    known = torch.zeros(2, 9, dtype=torch.bool)
    known[:, 0] = conditioning is not None
    videos = module.pipeline.clips(["a", "b"], make_draw(), batch.pixels, known)
    assert videos.shape == (2, 3, *SIZE)


def test_an_image_is_the_first_latent_frame(make_causal, make_batch):
    module, pixels = make_causal(), make_batch(size=SIZE).pixels
    known = torch.arange(9).expand(2, 9) == 0
    conditions = FrameReplacement().for_inference(pixels, known, module.autoencoder)
    assert conditions.known.mask.flatten(1).tolist() == [[1, 0, 0]] * 2
    # nothing but the image is looked at
    torch.testing.assert_close(conditions.known.latents[:, :, :1], module.autoencoder.encode(pixels)[:, :, :1])
    with pytest.raises(UserError, match="only whole ones can replace noise"):
        FrameReplacement().for_inference(pixels, torch.arange(9).expand(2, 9) < 4, module.autoencoder)
    assert (
        FrameReplacement().for_inference(pixels, torch.arange(9).expand(2, 9) < 5, module.autoencoder).known.mask.sum()
        == 4
    )


def test_masks_fold_as_open_sora_plan_folds_them(make_causal, make_batch):
    module = make_causal(conditioning=masked_video())
    known = torch.arange(9).expand(2, 9) < 3
    channels = masked_video().for_inference(make_batch(size=SIZE).pixels, known, module.autoencoder).controls.channels
    assert channels.shape == (2, 4 + 4, 3, 2, 2)
    discarded = channels[0, 4:, :, 0, 0].T  # frame 0 four times, frames 1 to 4, frames 5 to 8
    assert discarded.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("conditioning", [FrameReplacement(), masked_video("i2v")], ids=["replaced", "masked"])
def test_images_and_videos_train_in_turn(make_causal, make_batch, make_trainer, make_draw, conditioning):
    module, trainer = make_causal(conditioning=conditioning), make_trainer(max_steps=4)
    sizes = (SIZE, (1, 16, 16), (5, 16, 24), (1, 24, 16))
    trainer.fit(module, [make_batch("ab", size, number) for number, size in enumerate(sizes)])
    assert trainer.global_step == 4 and trainer.callback_metrics["train/loss"].isfinite()
    assert trainer.callback_metrics["train/loss"] > 0


def test_a_single_frame_from_an_image(make_causal, make_batch, make_draw, caplog):
    module = make_causal(conditioning=masked_video(), clip_shape=(1, 16, 16))
    picture = make_batch(size=(1, 16, 16)).pixels
    videos = module.pipeline.clips(["a", "b"], make_draw(), picture, torch.ones(2, 1, dtype=torch.bool))
    assert videos.shape == (2, 3, 1, 16, 16) and videos.isfinite().all()
    make_causal(conditioning=FrameReplacement(), clip_shape=(1, 16, 16))
    assert "conditioning=FrameReplacement would give all of a clip of 1 latent frames away" in caplog.text


def test_the_autoencoder_drops_nothing_while_the_denoiser_trains(make_causal, make_batch):
    module = make_causal().train()
    assert module.denoiser.training and not module.autoencoder.training
    pixels = make_batch(size=SIZE).pixels
    assert torch.equal(module.autoencoder.encode(pixels), module.autoencoder.encode(pixels))


def test_random_weights_are_refused_before_training(make_module):
    with pytest.raises(UserError, match=r"autoencoder\.path is not set"):
        make_module(backbone=FITTING, autoencoder=WFVAE(**TINY), clip_shape=SIZE)


def test_where_weights_are_looked_for(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, file = weights.parents[1], str(weights.resolve())
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "diffusion_pytorch_model.safetensors").touch()
    kind = {"_target_": "vidlab.autoencoders.wfvae.WFVAE"}
    for reference, found in {"run": file, str(weights): file, str(run): file, "vae": str(vae.resolve())}.items():
        cfg = OmegaConf.create({"autoencoder": {"path": reference, **kind}, "name": "vidlab", "logger": {}})
        locate_autoencoder(cfg)
        assert cfg.autoencoder.path == found
    for path in ({"path": None}, {}):
        locate_autoencoder(OmegaConf.create({"autoencoder": {**path, **kind}, "name": "vidlab"}))
    with pytest.raises(UserError, match=r"autoencoder\.path=nowhere: no such run folder"):
        locate_autoencoder(
            OmegaConf.create({"autoencoder": {"path": "nowhere", **kind}, "name": "vidlab", "logger": {}})
        )


def test_a_token_is_at_least_one_latent_position_and_says_so(caplog):
    caplog.set_level("INFO", "vidlab.lab.compose")
    backbone = {"_target_": "vidlab.backbones.dit.DiT", "_partial_": True, "width": 12, "depth": 1, "heads": 2}
    layouts = {"_target_": "vidlab.layers.layouts.LayerPlan", "cycle": [{"_target_": "vidlab.layers.layouts.Full3D"}]}

    def patch(token, stride) -> list[int]:
        model = OmegaConf.create({"token": token, "backbone": {**backbone, "layouts": layouts}})
        return list(make_backbone(model, stride).keywords["patch"])

    assert patch([4, 4, 4], Stride(4, 8, 8, first_frame_alone=True)) == [1, 1, 1]
    assert "a latent position is [4, 8, 8] pixels, tokens are [4, 8, 8]" in caplog.text
    caplog.clear()
    assert patch([4, 16, 8], Stride(4, 8, 8)) == [1, 2, 1] and patch([4, 4, 4], Stride(1, 4, 4)) == [4, 1, 1]
    assert not caplog.text
    with pytest.raises(UserError, match=r"token=\[4, 12, 8\] .*stride \[4, 8, 8\].*Use model.token=\[4, 8, 8\]"):
        patch([4, 12, 8], Stride(4, 8, 8))
