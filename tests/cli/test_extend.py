"""The examples of docs/extend.md, word for word, in a package outside the repository."""

import csv
import re
import shlex

import av
import pytest
import torch

from .command import REPOSITORY, TINY, Lab, new_lab
from .tracked import only

BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((REPOSITORY / "docs" / "extend.md").read_text())
COMMANDS = [command.strip() for title, command in BLOCKS if title == "run"]
LOOP, GENERATE = (command.strip() for title, command in BLOCKS if title == "generate")
(EVALUATE,) = (command.strip() for title, command in BLOCKS if title == "evaluate")
# settings of other models and sources do not exist for those of the examples
SMALL = [argument for argument in TINY if not argument.startswith(("model.", "data.source"))]

ADVERSARY = ("task.discriminator.width=4", "task.discriminator_start=0", "data.frames=8", "data.height=16",
             "data.width=16", "trainer.val_check_interval=2")  # fmt: skip
GENERATING = ("sampler.", "callbacks.previews")
FEW_SHAPES = ("data.source.train_clips=16", "data.source.val_clips=8")
DENOISER = ("data.height=16", "data.width=16", "trainer.max_steps=1", "model.backbone.width=48",
            "model.backbone.heads=2", "model.backbone.depth=1")  # fmt: skip


@pytest.fixture
def mine(commands, empty_store, tmp_path) -> Lab:
    """A working folder that holds the package of the page."""
    lab = new_lab(commands, tmp_path / "work", empty_store)
    for title, text in BLOCKS:
        if title not in ("run", "generate", "evaluate"):
            path = lab.folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for package in ("mylab", "mylab/conf"):
        (lab.folder / package / "__init__.py").touch()
    return lab


def decode(video):
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run(lab: Lab, command: str, *more: str):
    python, program, *arguments = shlex.split(command)
    assert python == "python"
    small = [word for word in SMALL if "task=autoencoder" not in arguments or not word.startswith(GENERATING)]
    if not any(word.startswith("data=") for word in arguments):
        small += FEW_SHAPES  # the thousands that are the default take six seconds to render
    path = {"PYTHONPATH": f"{lab.folder}:{REPOSITORY / 'src'}"}
    return lab.commands.run(program, *arguments, *small, *more, cwd=lab.folder, env=path)


@pytest.mark.parametrize("command", COMMANDS, ids=["backbone", "objective", "loss", "autoencoder", "source"])
def test_the_example_trains(mine, command):
    done = run(mine, command, "trainer.max_steps=2", *(ADVERSARY if "task=autoencoder" in command else ()))
    assert done.code == 0, done.err
    run_ = only(mine)
    last = 0 if "task=autoencoder" in command else 1  # the second step is the adversary's
    assert run_.status == "FINISHED" and ("train/loss", last) in run_.curve
    assert (("train/smooth", 1) in run_.curve) == ("losses=smooth" in command)
    config = (mine.runs[0] / "config.yaml").read_text()
    assert "mylab." in config
    own = {"ConvDenoiser": "mylab.conv", "Smoothness": "mylab.smooth", "Stripes": "mylab.stripes",
           "Sigmoid": "mylab.sigmoid", "StridedAutoencoder": "mylab.strided"}  # fmt: skip
    (name,) = (f"{module}.{own_class}" for own_class, module in own.items() if f"{module}.{own_class}" in config)
    if "task=autoencoder" in command:
        check_the_autoencoder(mine, run_, done.out, name)
        return
    assert re.search(rf"python generate\.py .* allow='\[{name}\]'$", done.out, re.MULTILINE)  # as it is to be typed
    if "model=conv" in command:
        env = {"PYTHONPATH": f"{mine.folder}:{REPOSITORY / 'src'}"}
        done = mine.generate("prompt=a ball", env=env)
        assert done.code == 2 and f"add allow='[{name}]' to the command line" in done.message, done.err
        done = mine.generate(*shlex.split(GENERATE)[2:], env=env)
        assert done.code == 0, done.err


def check_the_autoencoder(mine: Lab, run_, out: str, name: str) -> None:
    """It trained against an adversary; a denoiser trains on its latents; it is evaluated in parts and as a whole."""
    logged = {key for key, _ in run_.curve}
    assert {"train/kl", "train/adaptive_weight", "val/psnr", "val/latent_std"} <= logged
    assert "train/wavelet" not in logged
    (command,) = re.findall(r"python train\.py (model=skiparse .*)", out)
    denoised = run(mine, "python train.py", "hydra.searchpath=[pkg://mylab.conf]", *shlex.split(command), *DENOISER)
    assert denoised.code == 0, denoised.err
    shapes = ("data=moving_shapes", *FEW_SHAPES, "frames=8", "height=16", "width=16", "num_videos=2")
    words = (f"autoencoders=[{mine.runs[0]}]", *shapes, f"allow=[{name}]", "accelerator=cpu", "frames_at_once=2")
    env = {"PYTHONPATH": f"{mine.folder}:{REPOSITORY / 'src'}"}
    done = mine.commands.run("evaluate.py", *words, cwd=mine.folder, env=env)
    assert done.code == 0, done.err
    assert "8 x 4 x 4 x 4" in (next(mine.folder.glob("evaluations/*/report.md"))).read_text()


def test_a_metric_and_a_pipeline_of_ones_own(mine):
    """Both on one run of vidlab's own parts: the metric is in the report, and the video ends as it began."""
    env = {"PYTHONPATH": f"{mine.folder}:{REPOSITORY / 'src'}"}
    assert mine.train("trainer.max_steps=2").code == 0
    _, program, *words = shlex.split(EVALUATE)
    done = mine.commands.run(program, *words, "accelerator=cpu", "noise_levels=1", cwd=mine.folder, env=env)
    assert done.code == 0, done.err
    (scores,) = mine.folder.glob("evaluations/*/clips.csv")
    found = [float(row["score"]) for row in csv.DictReader(scores.open()) if row["metric"] == "brightness"]
    assert len(found) == 4 and all(0 <= value <= 1 for value in found)

    _, program, *words = shlex.split(LOOP)
    done = mine.commands.run(program, *words, "accelerator=cpu", cwd=mine.folder, env=env)
    assert done.code == 0, done.err
    (original, _) = sorted(mine.folder.glob("samples/*/originals/*.mp4"))
    frames = decode(original)
    assert len(frames) == 2 * 8 - 2 and (frames[1] == frames[-1]).all() and not (frames[0] == frames[7]).all()
    done = mine.commands.run(program, *words, "steps=3", cwd=mine.folder, env=env)
    assert done.code == 2 and done.message.startswith("steps=3: the system names no sampler")


def test_the_weight_of_the_example_is_the_sigmoid_it_names(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine.folder))
    from mylab.sigmoid import Sigmoid  # type: ignore[import-not-found]

    from vidlab.diffusion.parameterizations import Velocity
    from vidlab.diffusion.schedules import LinearPath

    path = LinearPath().coefficients(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    found = Sigmoid(bias=2.0).weight(path, Velocity())
    log_snr = 2 * torch.log(torch.tensor([3.0, 1.0], dtype=torch.float64))  # alpha / sigma = 0.75 / 0.25, 0.5 / 0.5
    torch.testing.assert_close(found[1:3], torch.sigmoid(2.0 - log_snr))
    assert found[0] == 0 and found[3] == 1


def test_mistakes_in_additions_are_named_too(mine):
    done = run(mine, COMMANDS[0], "+model.backbone.depth=2")
    assert done.code == 2
    assert "model.backbone.depth=2: ConvDenoiser has no setting 'depth'" in done.message
    done = run(mine, COMMANDS[0], "model.backbone.width=0")
    assert done.code == 2 and done.message == "model.backbone.width=0 must be at least 1."
    done = run(mine, COMMANDS[0].replace("mylab.conf", "nolab.conf"))
    assert done.code == 2 and "path=nolab.conf is not available" in done.err and "Traceback" not in done.err
