import av
import numpy as np
import pytest
from PIL import Image

from tiny_release import make_release

from .command import Lab
from .test_generate import frames, refused

SMALL = ("system=open_sora_plan", "frames=9", "height=16", "width=32", "sampler.steps=2", "accelerator=cpu",
         "precision=32-true", "prompt=a red circle, moves left")  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


def generate(lab: Lab, *arguments: str):
    return lab.commands.run("generate.py", *SMALL, *arguments, cwd=lab.folder)


def test_a_published_system_by_one_command(lab, release):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(lab.folder / "first.png")
    settings = ("image=first.png", "num_videos=2", "batch_size=2", "hydra.run.dir=samples/image")
    done = generate(lab, f"system.path={release}", *settings)
    assert done.code == 0, done.err
    assert f"2 videos from {release}" in done.out
    folder = lab.folder / "samples" / "image"
    written = {path.name for path in folder.iterdir()}
    assert {"sheet.png", "grid.gif", "grid.mp4", "000.mp4", "001.gif", "originals"} <= written
    assert [path.read_text() for path in folder.glob("originals/*.txt")] == ["a red circle, moves left\n"] * 2
    videos = [frames(path) for path in sorted(folder.glob("originals/*.mp4"))]
    assert [video.shape for video in videos] == [(9, 16, 32, 3)] * 2 and not np.array_equal(*videos)
    with av.open(str(folder / "000.mp4")) as file:
        assert file.streams.video[0].average_rate == 18


def test_mistakes(lab, release):
    refused(generate(lab), "system.path is not set: give the folder of the release")
    path = f"system.path={release}"
    refused(generate(lab, path, "segments=2"), "segments=2: a system makes videos of one clip. Use segments=1.")
    refused(generate(lab, path, "frames=8"), "frames=8: it must be 1 plus a multiple of 4. Use frames=5 or frames=9.")
    refused(generate(lab, path, "system.chunks=3"), "system.chunks")
    refused(generate(lab, "system=open_sora"), "system=open_sora: no such choice. Did you mean 'open_sora_plan'?")
