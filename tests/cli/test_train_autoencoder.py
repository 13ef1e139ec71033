"""``train.py task=autoencoder`` as a person types it."""

import json

import pytest

from .tracked import only, weights

TINY = (
    "task=autoencoder", "trainer=cpu", "precision=32-true", "task.perceptual=null", "data.frames=5", "data.height=16",
    "data.width=16", "data.source.train_clips=16", "data.source.val_clips=4", "data.val_clips=4", "data.batch_size=2",
    "data.num_workers=0", "autoencoder.width=8", "autoencoder.start=random",
    "task.discriminator.width=4", "task.discriminator_start=1", "trainer.max_steps=4", "trainer.val_check_interval=2",
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
    assert f"autoencoders=[{short},haar,trilinear] data=moving_shapes" in done.out and "val/psnr" in done.out
    assert f"model=skiparse autoencoder=wfvae_nano autoencoder.path={short} data.frames=5" in done.out
    run, summary = only(lab), json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4 and weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    logged = {name: sorted(step for key, step in run.curve if key == name) for name, _ in run.curve}
    assert logged["train/grad_norm"] == [0, 2] and logged["train/discriminator"] == [1, 3]
    assert {"train/adversarial", "train/adaptive_weight", "train/kl", "train/wavelet", "val/psnr"} <= logged.keys()
    denoised = lab.train(
        "autoencoder=wfvae_nano", "autoencoder.width=8", f"autoencoder.path={folder}", "data.frames=5",
        "data.height=16", "data.width=16", "trainer.max_steps=1", "sampler.steps=2",
    )  # fmt: skip
    assert denoised.code == 0, denoised.err
    generated = lab.generate(f"checkpoint={folder}", "prompt=anything")
    assert generated.code == 2 and "is of an autoencoder, which generates nothing" in generated.message


def test_a_resumed_run_continues(lab):
    assert train(lab, "trainer.max_steps=3", QUIET).code == 0
    done = train(lab, "ckpt_path=last", QUIET)
    assert done.code == 0, done.err
    (folder,) = lab.runs
    assert weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert {step for name, step in only(lab).curve if name.startswith("train/")} >= {0, 1, 2, 3}


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
        (["callbacks=[default,adaptive_clipping]"], "VideoAutoencoder takes its optimiser steps itself"),
    ],
)
def test_choices_it_cannot_honour(lab, arguments, message):
    settings = [word for word in TINY if not (arguments[0] == "autoencoder=haar" and word.startswith("autoencoder."))]
    if "~autoencoder.width" in arguments:
        arguments = arguments[:1]
    done = lab.commands.run("train.py", *settings, *arguments, "logger=none", cwd=lab.folder)
    assert done.code == 2 and message in done.message, done.err
