"""Class-to-video: from a folder in UCF-101's format to a video of a named class."""

import numpy as np

from vidlab.data.video import encode

from .command import TINY, new_lab

CLASSES = ("ApplyEyeMakeup", "YoYo")


def test_a_class_of_ucf101_is_trained_and_prompted(commands, empty_store, tmp_path):
    lab = new_lab(commands, tmp_path / "work", empty_store)
    clip = encode(np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), fps=25)
    lists = lab.folder / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for group, side in ((1, "test"), (2, "train")):
        names = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in CLASSES]
        (lists / f"{side}list01.txt").write_text("\n".join(names))
        for name in names:
            video = lists.parent / "UCF-101" / name
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_bytes(clip)
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n3 Archery\n")
    size = ("data.frames=8", "data.height=16", "data.width=16", "trainer.max_steps=2", "data.batch_size=2")
    tiny = [word for word in TINY if not word.startswith("data.source")]
    command = ("model=stiv", "data=ucf101", "data.path=ucf", "conditioning=class", *tiny, *size)
    done = commands.run("train.py", *command, cwd=lab.folder)
    assert done.code == 0, done.err
    (run,) = lab.runs
    assert "\n  classes:\n  - apply eye makeup\n  - yo yo\n  - archery\n" in (run / "config.yaml").read_text()
    done = lab.generate("prompt=YoYo", "hydra.run.dir=samples/yoyo")
    assert done.code == 0, done.err
    assert lab.generate("prompt=yoga").message.startswith('"yoga" is none of the 3 classes.')
