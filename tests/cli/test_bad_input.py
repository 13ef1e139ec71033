"""Every mistake ends in one message that names the cause and the remedy, without a traceback, with exit code 2."""

from pathlib import Path

import av
import numpy as np
import pytest

from vidlab.data.video import encode

from .command import TINY, Done, Lab, new_lab
from .tracked import only, tracked, weights

SHAPES = [argument for argument in TINY if not argument.startswith("data.source")]


@pytest.fixture(scope="module")
def shared(commands, empty_store, tmp_path_factory) -> Lab:
    """A working folder for mistakes that leave nothing behind."""
    lab = new_lab(commands, tmp_path_factory.mktemp("mistakes") / "work", empty_store)
    (lab.folder / "file").write_text("not a folder")
    (lab.folder / "empty").mkdir()
    return lab


def videos(folder: Path, count: int, frames: int = 8) -> Path:
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        clip = noise.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
        (folder / f"{number:02d}.mp4").write_bytes(encode(clip, 8.0))
        (folder / f"{number:02d}.txt").write_text("noise")
    return folder


def sound(path: Path) -> None:
    with av.open(str(path), "w") as target:
        stream = target.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            target.mux(packet)


def train_folder(lab: Lab, path: str, *arguments: str) -> Done:
    return lab.commands.run(
        "train.py", *SHAPES, "data=folder", f"data.path={path}", "trainer.max_steps=2", *arguments, cwd=lab.folder
    )


def refused(done: Done, *parts: str) -> bool:
    assert done.code == 2, done
    assert "Traceback" not in done.err, done.err
    for part in parts:
        assert part in done.message, done.message
    assert len(done.message) < 700
    return True


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=full4d", "model=full4d: no such choice. Did you mean 'full3d'? Choices: "),
        ("callbacks=[default,nosuch]", "callbacks=nosuch: no such choice; --help lists the choices"),
        ("data.path=videos.csv", "data.path: data=moving_shapes reads no folder. Videos with captions are data=folder"),
        ("mode=full3d", "mode: no such key. Did you mean model"),
        ("trainer.max_stepz=1", "trainer.max_stepz: no such key. Did you mean 'max_steps'?"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: it must be a whole number."),
        ("optimizer.lr=fast", "optimizer.lr=fast: it must be a number."),
        ("optimizer.lr=-1", "optimizer.lr=-1 must not be negative"),
        ("model.backbone.width=wide", "model.backbone.width=wide: it must be a whole number."),
        ("model.backbone.heads=5", "model.backbone.width=48 is not a multiple of model.backbone.heads=5"),
        ("model.token=[4,12,12]", "model.backbone.patch=[1, 3, 3] does not divide the latents: their height is 8"),
        ("model.token=[4,6,6]", "model.token=[4, 6, 6] pixels is not a multiple of the autoencoder's stride [4, 4, 4]"),
        ("data.height=30", "data.height=30 does not fit Haar: it must be a multiple of 4. Use data.height=28"),
        ("data.frames=7", "data.frames=7 does not fit Haar: it must be a multiple of 4. Use data.frames=4"),
        ("data.batch_size=0", "data.batch_size=0: it must be 1 or more"),
        ("trainer.max_steps=-1", "lr_schedule=linear_decay needs the length of the run: set trainer.max_steps"),
        ("trainer.devices=99", "trainer.devices=99: one process per core at most, and this machine has"),
        ("trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches=1: Lightning would put an order of its own in place"),
        ("precision=17", "precision=17: choose one of auto, 32-true, bf16-mixed, bf16-true, 16-mixed, 64-true."),
        ("seed=-1", "seed=-1: it must be a whole number from 0 to 4294967295."),
        ("ckpt_path=nonexistent", "ckpt_path=nonexistent: no such run folder or checkpoint file"),
        ("ckpt_path=last", "ckpt_path=last: no run of experiment 'vidlab' has a checkpoint yet"),
        ("logger.uri=http://localhost:9", "logger.uri=http://localhost:9: the MLflow store does not answer"),
        ("logger.uri=sqlite:///file/mlflow.db", "logger.uri=sqlite:///"),
        ("data.source.frames=4", "data.frames=8, data.frame_stride=1: 8 frames needed per clip"),
        ("trainer=gpu", "trainer.accelerator=gpu: no CUDA GPU is visible to torch"),
        ("hydra.run.dir=file/run", "file/run: a part of this path is a file, not a folder"),
        ("hydra.run.dir=/sys/run", "choose "),
    ],
)
def test_a_mistake_on_the_command_line(shared, argument, message):
    assert refused(shared.train(argument), message)
    assert not list(shared.folder.glob("runs/*/*")) and not tracked(shared)


def test_a_password_on_the_command_line_is_written_nowhere(lab):
    """Neither on the screen nor by Hydra, which records the command line before anything of vidlab runs."""
    done = lab.train("logger.uri=http://me:open-sesame@localhost:9", "hydra.run.dir=runs/vidlab/one")
    assert refused(done, "logger.uri=http://me:***@localhost:9: the MLflow store does not answer")
    (recorded,) = lab.folder.glob("runs/*/*/.hydra/overrides.yaml")
    assert "logger.uri=http://me:***@localhost:9" in recorded.read_text()
    texts = [path.read_bytes() for path in lab.folder.rglob("*") if path.is_file()]
    assert not any(b"open-sesame" in text for text in (*texts, (done.out + done.err).encode()))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("null", "data.path is not set: give a folder of videos, data.path=/my/videos"),
        ("nowhere", "data.path=nowhere: no such folder"),
        ("empty", "empty: no video found (looked for .mp4"),
        ("file", "data.path=file: this is a file; give the folder that holds the videos"),
    ],
)
def test_folders_without_videos(shared, path, message):
    assert refused(train_folder(shared, path), message)


def test_clips_shorter_than_asked(lab):
    videos(lab.folder / "short", 3, frames=4)
    done = train_folder(lab, "short")
    assert refused(done, "data.frames=8", "the longest of 3 clips has 4. Set data.frames=4 or lower")
    assert not tracked(lab) and not list(lab.folder.glob("runs/*/*"))


def test_unreadable_files_are_counted_up_to_a_limit(lab):
    folder = videos(lab.folder / "large", 12)
    whole = (folder / "01.mp4").read_bytes()
    (folder / "01.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "02.mp4").write_bytes(b"")
    sound(folder / "03.mp4")
    assert refused(train_folder(lab, "large"), "3 of 12 clips", "data.max_corrupt=0.01", "01.mp4: not a readable video")
    done = train_folder(lab, "large", "data.max_corrupt=3")
    assert done.code == 0, done.err
    assert "3 unreadable clips were skipped" in done.out
    assert "02.mp4: the file is empty (0 bytes)" in done.out and "03.mp4: no video stream, only audio" in done.out
    assert [run.status for run in tracked(lab)] == ["FINISHED"]
    assert refused(train_folder(lab, "large", "data.max_corrupt=2"), "more than data.max_corrupt=2 allows")


def test_a_full_disk_while_checkpointing(lab):
    steps = ("trainer.max_steps=4", "callbacks.checkpoint.every_n_steps=2", "trainer.val_check_interval=100")
    assert lab.train(*steps).code == 0
    checkpoint = lab.runs[0] / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    # no file may grow beyond a little more than the MLflow database: the next checkpoint does not fit
    limit = (lab.folder / "mlflow.db").stat().st_size + 200_000
    assert len(before) > limit
    done = lab.train("ckpt_path=last", *steps, "trainer.max_steps=8", max_file_bytes=limit)
    assert refused(done, "last.ckpt could not be written", "Free disk space", "ckpt_path=last")
    assert checkpoint.read_bytes() == before
    assert not list(checkpoint.parent.glob(".*"))
    assert only(lab).status == "FAILED"
    assert lab.train("ckpt_path=last", *steps, "trainer.max_steps=8").code == 0
    assert weights(checkpoint)["global_step"] == 8 and only(lab).status == "FINISHED"


def test_a_training_that_diverges_is_stopped_before_it_overwrites_its_checkpoint(lab):
    start = ("trainer.max_steps=40", "lr_schedule.warmup_steps=0", "callbacks.checkpoint.every_n_steps=5")
    assert lab.train(*start, "trainer.max_steps=5").code == 0
    done = lab.train(*start, "ckpt_path=last", "optimizer.lr=1e30", "optimizer.clip_norm=null", "accept_changes=true")
    assert refused(done, "train/loss is ", "Lower optimizer.lr=1e+30"), done
    assert only(lab).status == "FAILED"
    assert weights(lab.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == 5
