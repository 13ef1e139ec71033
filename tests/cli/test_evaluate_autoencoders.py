import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.data.video import probe, read_frames

from .command import Done, Lab, new_lab

WFVAE_SETTINGS = {"latent_channels": 4, "width": 8, "encoder_energy": 8, "decoder_energy": 8, "encoder_blocks": 0}
SHAPES = (
    "data=moving_shapes",
    "data.source.train_clips=4",
    "data.source.val_clips=4",
    "data.height=16",
    "data.width=24",
)
SMALL = ("accelerator=cpu", "precision=32-true", "metrics=reconstruction", "metrics.lpips=null", "metrics.rfvd=null")


def evaluate(lab: Lab, *arguments: str) -> Done:
    return lab.commands.run("evaluate.py", *SMALL, *arguments, cwd=lab.folder)


def write_run(folder: Path) -> None:
    """What training of an autoencoder leaves: weights, averaged ones, and the configuration."""
    torch.manual_seed(0)
    model = WFVAE(**WFVAE_SETTINGS)
    raw = {f"autoencoder.{name}": value for name, value in model.state_dict().items()}
    average = {name: value * 0.5 for name, value in raw.items() if name.endswith("weight")}
    config = {
        "autoencoder": {"_target_": "vidlab.autoencoders.wfvae.WFVAE", "path": None, **WFVAE_SETTINGS},
        "seed": 0,
        "data": {"frames": 5, "height": 16, "width": 24},
    }
    (folder / "checkpoints").mkdir(parents=True)
    state = {
        "state_dict": raw,
        "ema": average,
        "config": OmegaConf.to_yaml(OmegaConf.create(config)),
        "global_step": 3,
    }
    torch.save(state, folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def work(commands, empty_store, tmp_path_factory) -> Lab:
    lab = new_lab(commands, tmp_path_factory.mktemp("autoencoders") / "work", empty_store)
    write_run(lab.folder / "runs" / "vidlab" / "trained")
    return lab


@pytest.fixture(scope="module")
def report(work) -> Path:
    named = "autoencoders=[haar,last,{choice: trilinear, span: 3}]"
    done = evaluate(work, named, *SHAPES, "hydra.run.dir=evaluations/three")
    assert done.code == 0 and done.err == "", done.err
    assert "side by side" in done.out
    return work.folder / "evaluations" / "three"


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "autoencoders.csv").open(newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def test_every_autoencoder_gets_the_same_clips_at_the_runs_size(report):
    found = rows(report)
    assert list(found) == ["haar", "trained", "trilinear (span=3)"]
    assert {row["size"] for row in found.values()} == {"5 x 16 x 24"}
    assert (found["haar"]["padded"], found["trained"]["padded"]) == ("8 x 16 x 24", "5 x 16 x 24")
    # 3 x 5 x 16 x 24 = 5760 numbers in a clip; 4 and 8 channels of 2 x 2 x 3; 192 of 2 x 4 x 6
    assert [float(row["latent_values"]) for row in found.values()] == [192 * 48, 48, 96]
    assert [float(row["compression"]) for row in found.values()] == pytest.approx([5760 / 9216, 120, 60])
    assert float(found["haar"]["psnr"]) == 100 and float(found["haar"]["ssim"]) == pytest.approx(1, abs=1e-3)
    assert float(found["trained"]["psnr"]) < 30 < 100
    assert int(float(found["trained"]["parameters"])) == sum(p.numel() for p in WFVAE(**WFVAE_SETTINGS).parameters())
    for row in found.values():
        assert float(row["encode_frames_per_second"]) > 0 and float(row["decode_frames_per_second"]) > 0
        assert float(row["encode_peak_mib"]) >= 0 and float(row["decode_peak_mib"]) >= 0


def test_what_was_measured_is_what_the_files_hold(report):
    original = [read_frames(path) for path in sorted((report / "originals").glob("*.mp4"))]
    made = [read_frames(path) for path in sorted((report / "reconstructions-2").glob("*.mp4"))]
    assert len(original) == len(made) == 4
    errors = ((np.stack(original).astype(float) - np.stack(made)) ** 2).mean((2, 3, 4))
    expected = (10 * np.log10(255**2 / errors)).mean()
    assert float(rows(report)["trilinear (span=3)"]["psnr"]) == pytest.approx(expected, rel=1e-6)


def test_the_report_says_what_the_numbers_depend_on(report):
    text = (report / "report.md").read_text()
    assert "- haar does not take 5 x 16 x 24: the last frame was repeated to 8 x 16 x 24" in text
    assert "4 held-out clips of data=moving_shapes, 5 frames of 16 x 24" in text
    assert "1 threads" in text and "32-true" in text and "## Comparison" in text and "paired bootstrap" in text


def test_pictures_side_by_side(report):
    assert Image.open(report / "side_by_side.png").size[1] > 4 * 4 * 64
    film = probe(report / "side_by_side.mp4")
    # 4 clips beneath each other, original and three reconstructions beside each other, enlarged to 128 pixels
    assert film.frames == 5 and film.height > 4 * 128 and film.width > 4 * 192


def test_the_comparison_is_a_run_of_mlflow(work, report):
    with closing(sqlite3.connect(work.folder / "mlflow.db")) as database:
        metrics = dict(
            database.execute(
                "select m.key, m.value from metrics m join runs r on m.run_uuid = r.run_uuid "
                "join experiments e on r.experiment_id = e.experiment_id where e.name = 'vidlab-evaluations'"
            ).fetchall()
        )
    found = rows(report)
    assert metrics["haar/psnr"] == 100
    assert metrics["trained/psnr"] == pytest.approx(float(found["trained"]["psnr"]))
    assert metrics["trained/parameters"] == float(found["trained"]["parameters"])
    kept = {path.name for path in (work.folder / "mlruns").rglob("*") if path.is_file()}
    assert {"report.md", "autoencoders.csv", "side_by_side.png", "side_by_side.mp4"} <= kept


def test_raw_and_averaged_weights_differ_and_the_command_line_decides_the_size(work, report):
    done = evaluate(work, "autoencoders=[last]", *SHAPES, "weights=raw", "frames=4", "hydra.run.dir=evaluations/raw")
    assert done.code == 0 and done.err == "", done.err
    (row,) = rows(work.folder / "evaluations" / "raw").values()
    assert (row["size"], row["padded"]) == ("4 x 16 x 24", "5 x 16 x 24")
    assert row["psnr"] != rows(report)["trained"]["psnr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("autoencoders=haar", *SHAPES), "autoencoders=haar: give a list"),
        (("autoencoders=[haar]",), "data: no data is named"),
        (("autoencoders=[nowhere]", *SHAPES), "A choice is one of haar, haar_frames, haar_unit, identity"),
        (("autoencoders=[{choice: nothing}]", *SHAPES), "there is no choice autoencoder=nothing. There are haar"),
        (("autoencoders=[{span: 1}]", *SHAPES), "names no choice"),
        (("autoencoders=[{choice: trilinear, spam: 1}]", *SHAPES), "Trilinear has no setting 'spam'"),
        (("autoencoders=[wfvae_nano]", *SHAPES), "so the autoencoder has random weights"),
        (("autoencoders=[image_vae]", *SHAPES), "autoencoder.path is not set. Give a local folder"),
        (("autoencoders=[haar]", "run=last", *SHAPES), "run, autoencoders are named"),
        (
            ("autoencoders=[haar]", *SHAPES, "metrics.psnr=null", "metrics.ssim=null"),
            "metrics is empty",
        ),
        (("autoencoders=[haar]", "data=folder"), "data.path is not set"),
    ],
)
def test_what_cannot_be_evaluated(work, arguments, message):
    done = evaluate(work, *arguments)
    assert done.code == 2 and message in done.message and "Traceback" not in done.err, done
