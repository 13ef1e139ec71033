import json
from pathlib import Path

import av
import numpy as np
import pytest

import vidlab
from tiny_language_model import save_tiny
from vidlab.lab.ema.__main__ import main as write_average
from vidlab.text.refiner.refiner import PromptRefiner

from .command import TINY, Done, Lab, new_lab
from .tracked import only

PROMPT = "prompt=a red square, moving to the right"


@pytest.fixture(scope="module")
def trained(commands, empty_store, tmp_path_factory) -> Lab:
    """A folder with one short run, taught fast enough that averaged and raw weights give different videos."""
    lab = new_lab(commands, tmp_path_factory.mktemp("trained") / "work", empty_store)
    kept = ("callbacks=[default,post_hoc_ema]", "callbacks.post_hoc_ema.every_n_steps=1")
    fast = ("lr_schedule=constant", "lr_schedule.warmup_steps=0", "optimizer.lr=0.02")
    done = lab.train("trainer.max_steps=6", *fast, *kept)
    assert done.code == 0, done.err
    return lab


@pytest.fixture(scope="module")
def samples(trained) -> Path:
    """The folder of two videos generated with the defaults."""
    return generated(trained, "default")


def generated(lab: Lab, name: str, *arguments: str) -> Path:
    done = lab.generate(PROMPT, *arguments, f"hydra.run.dir=samples/{name}")
    assert done.code == 0, done.err
    assert done.err == "", done.err
    return lab.folder / "samples" / name


def originals(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "originals").glob("*.mp4"))]


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def refused(done: Done, message: str) -> None:
    assert done.code == 2, done
    assert message in done.message and "Traceback" not in done.err, done.err


def test_what_is_written(samples):
    names = {path.name for path in samples.iterdir()}
    assert {"sheet.png", "grid.gif", "grid.mp4", "000.mp4", "001.mp4", "000.gif", "originals"} <= names
    assert [path.read_text() for path in sorted(samples.glob("originals/*.txt"))] == [PROMPT[7:] + "\n"] * 2
    with av.open(str(samples / "000.mp4")) as playable, av.open(str(samples / "originals" / "000.mp4")) as lossless:
        stream, original = playable.streams.video[0], lossless.streams.video[0]
        assert min(stream.width, stream.height) >= 256 and stream.codec_context.pix_fmt == "yuv420p"
        assert (original.width, original.height) == (32, 32)
        assert original.codec_context.pix_fmt in ("rgb24", "gbrp")  # no color is lost
    videos = [frames(path) for path in sorted(samples.glob("originals/*.mp4"))]
    assert all(video.shape == (8, 32, 32, 3) for video in videos)
    assert not np.array_equal(*videos)


def test_every_way_to_name_a_checkpoint_gives_the_same_bits(trained, samples):
    (run,) = trained.runs
    references = (run, run / "checkpoints" / "last.ckpt", only(trained).run_id)
    for number, reference in enumerate(references):
        again = generated(trained, f"same-{number}", f"checkpoint={reference}")
        assert originals(again) == originals(samples)


def test_an_average_of_another_length_is_that_of_the_checkpoint_made_of_it(trained, samples):
    (run,) = trained.runs
    assert write_average([str(run), "0.2"]) == 0
    asked = generated(trained, "length", "ema_length=0.2")
    made = generated(trained, "length-made", f"checkpoint={run / 'checkpoints' / 'ema-0.2.ckpt'}")
    assert originals(asked) == originals(made) != originals(samples)


def test_videos_do_not_depend_on_their_batch(trained, samples):
    alone = generated(trained, "alone", "batch_size=1")
    for name in ("000.mp4", "001.mp4"):
        a, b = (frames(folder / "originals" / name).astype(int) for folder in (alone, samples))
        assert np.abs(a - b).max() <= 1


def test_seed_weights_and_guidance_matter(trained, samples):
    other = [
        originals(generated(trained, name, f"{name}={value}")) for name, value in (("seed", 1), ("weights", "raw"))
    ]
    guided = originals(generated(trained, "guided", "guidance=cfg", "guidance.scale=20"))
    assert len({tuple(videos) for videos in (originals(samples), guided, *other)}) == 4


def test_both_prompts_are_kept_when_a_refiner_expands_them(trained):
    model = save_tiny(trained.folder / "tiny-refiner")
    made = trained.folder / "samples" / "refined"
    done = trained.generate(PROMPT, "refine=true", f"refiner={model}", "refiner_tokens=4", f"hydra.run.dir={made}")
    assert done.code == 0, done.err
    first, *_ = records = json.loads((made / "prompts.json").read_text())
    refiner = PromptRefiner.load(str(model), max_new_tokens=4)
    expanded = refiner.refine([first["prompt"]])[0].refined
    assert first["prompt"] in PROMPT and first["refined"] == expanded != first["prompt"]
    assert first["refiner"] == str(model) and [one["number"] for one in records] == [0, 1]
    assert (made / "originals" / "000.txt").read_text() == expanded + "\n"
    assert json.loads((made / "originals" / "001.json").read_text())["prompt"] == first["prompt"]
    refused(trained.generate(PROMPT, "refine=true"), "refiner=last: there is none in")
    video = vidlab.load(trained.runs[0])(first["prompt"], steps=1, refine=refiner, progress=False)[0]
    assert (video.original, video.prompt) == (first["prompt"], expanded)


def test_originals_are_a_data_set(trained, samples):
    settings = [argument for argument in TINY if not argument.startswith(("data.source", "logger"))]
    arguments = ("data=folder", f"data.path={samples / 'originals'}", "trainer.max_steps=1", "logger=none")
    done = trained.commands.run("train.py", *settings, *arguments, cwd=trained.folder)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights=best"], "weights=best: choose ema or raw."),
        (["checkpoint=nowhere"], "checkpoint=nowhere: no such run folder or checkpoint file"),
        (["checkpoint=last", "name=other"], "checkpoint=last: no run of experiment 'other' has a checkpoint yet"),
        (["checkpoint=" + "0" * 32], "not found in sqlite:///"),
        (["num_videos=0"], "num_videos=0"),
        (["batch_size=0"], "batch_size=0"),
        (["fps=0"], "fps=0"),
        (["height=30"], "height=30"),
        (["accelerator=tpu"], "accelerator=tpu"),
        (["prompt=" + "very " * 2000 + "long"], "has 2002 tokens; this text encoder reads at most 64"),
        (["promt=a"], "promt: no such key. Did you mean 'prompt'?"),
        (["sampler=eular"], "sampler=eular: no such choice. Did you mean 'euler'?"),
        (["seed=abc"], "seed=abc"),
    ],
)
def test_mistakes(trained, arguments, message):
    refused(trained.generate(PROMPT, *arguments), message)


def test_a_prompt_is_required(trained):
    refused(trained.generate(), "prompt is required: add prompt=... to the command line.")
