"""``train.py task=autoencoder`` as a person types it."""

import json
import re
import shlex

import pytest
import torch

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.lab.evaluation.entries import trained_autoencoder
from vidlab.lab.export import main as export
from vidlab.lab.trusted_config import Allowed, trained_config
from vidlab.training.checkpoint_io import load_checkpoint

from .tracked import only, weights

TINY = (
    "task=autoencoder", "trainer=cpu", "precision=32-true", "task.perceptual=null", "data.frames=5", "data.height=16",
    "data.width=16", "data.source.train_clips=16", "data.source.val_clips=4", "data.val_clips=4", "data.batch_size=2",
    "data.num_workers=0", "autoencoder.width=8", "autoencoder.start=random",
    "callbacks.checkpoint.every_n_steps=2", "task.discriminator.width=4",
    "task.discriminator_start=1", "trainer.max_steps=4", "trainer.val_check_interval=2",
)  # fmt: skip
QUIET = "logger.system_metrics=false"


def train(lab, *arguments):
    return lab.commands.run("train.py", *TINY, *arguments, cwd=lab.folder)


def test_from_training_to_a_denoiser_on_its_latents(lab):
    done = train(lab, "callbacks.reconstructions.count=2", QUIET)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err and "Warning" not in done.err, done.err
    (folder,) = lab.runs
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "previews/step-000004.png", "summary.json"} <= names
    short = folder.relative_to(lab.folder)
    assert f"autoencoders='[{short},haar,trilinear]' data=moving_shapes" in done.out and "val/psnr" in done.out
    assert (
        f"model=skiparse autoencoder=wfvae_nano autoencoder.width=8 autoencoder.path={short} data.frames=5" in done.out
    )
    run, summary = only(lab), json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4 and weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    logged = {name: sorted(step for key, step in run.curve if key == name) for name, _ in run.curve}
    assert logged["train/grad_norm"] == [0, 2] and logged["train/discriminator"] == [1, 3]
    assert {"train/adversarial", "train/adaptive_weight", "train/kl", "train/wavelet", "val/psnr"} <= logged.keys()
    stored = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    last_std = run.curve["val/latent_std", max(logged["val/latent_std"])]
    assert stored["state_dict"]["autoencoder.latent_scale"].unique().item() == pytest.approx(1 / last_std, rel=1e-4)
    assert len(stored["latents"]["std"]) == 8
    (command,) = re.findall(r"python train.py (model=skiparse .*)", done.out)  # as it is printed
    denoised = lab.train(
        *shlex.split(command), "data.height=16", "data.width=16", "trainer.max_steps=1", "sampler.steps=2"
    )
    assert denoised.code == 0, denoised.err
    export([str(folder), str(lab.folder / "exported")])
    released = WFVAE.from_published(lab.folder / "exported")
    assert not released.compat
    checkpoint = folder / "checkpoints" / "last.ckpt"
    trained = trained_autoencoder(stored, trained_config(stored, checkpoint, Allowed()), checkpoint, "ema")
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    torch.testing.assert_close(released.eval().encode(clip), trained.eval().encode(clip))
    generated = lab.generate(f"checkpoint={folder}", "prompt=anything")
    assert generated.code == 2 and "is of an autoencoder, which generates nothing" in generated.message


def test_a_resumed_run_continues(lab):
    assert train(lab, "trainer.max_steps=3", QUIET).code == 0
    done = train(lab, "ckpt_path=last", QUIET)
    assert done.code == 0, done.err
    (folder,) = lab.runs
    assert weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert {step for name, step in only(lab).curve if name.startswith("train/")} >= {0, 1, 2, 3}


@pytest.mark.slow
def test_two_processes_train_on_buckets(lab):
    done = train(
        lab, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.bucketing.max_tokens=512", QUIET,
        "trainer.strategy=ddp_find_unused_parameters_true",
    )  # fmt: skip
    assert done.code == 0 and "Traceback" not in done.err, done.err
    (folder,) = lab.runs
    assert weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert only(lab).status == "FINISHED" and done.out.count("Trained 4 steps") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=skiparse"], "model: VideoAutoencoder has no use for it"),
        (["objective=epsilon", "attention=sdpa"], "objective, attention=sdpa: VideoAutoencoder has no use for them"),
        (["autoencoder=haar", "~autoencoder.width"], "Haar has nothing to train. Use autoencoder=wfvae_nano"),
        (["data.val_clips=0"], "data.val_clips=0: the scale of the latents is measured on held-out clips"),
        (["callbacks=[default,evaluation]"], "scores generated videos, and an autoencoder generates none"),
        (["trainer.accumulate_grad_batches=2"], "take turns here. Use task.accumulate=2"),
        (["+trainer.gradient_clip_val=1.0"], "Use optimizer.clip_norm and task.discriminator_optimizer.clip_norm"),
        (["autoencoder.start=wavelets", "autoencoder.encoder_energy=16"], "twice autoencoder.width leaves none there"),
        (["callbacks=[default,adaptive_clipping]"], "VideoAutoencoder takes its optimizer steps itself"),
    ],
)
def test_choices_it_cannot_honor(lab, arguments, message):
    settings = [word for word in TINY if not (arguments[0] == "autoencoder=haar" and word.startswith("autoencoder."))]
    if "~autoencoder.width" in arguments:
        arguments = arguments[:1]
    done = lab.commands.run("train.py", *settings, *arguments, "logger=none", cwd=lab.folder)
    assert done.code == 2 and message in done.message, done.err
