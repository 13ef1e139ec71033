"""Image to video with pyramid flow: a picture begins the video, which grows frame by frame, longer than in training."""

import av
import numpy as np
import pytest

from .command import Lab, new_lab

PYRAMID = (
    "model=mmdim", "objective=pyramid_flow", "conditioning=frame_replacement", "autoencoder=haar_unit",
    "model.backbone.dual_depth=1", "objective.image_share=0", "sampler.first_steps=2", "callbacks.previews=null",
    "callbacks.validate_at_end=null",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(commands, empty_store, tmp_path_factory) -> Lab:
    """A folder with a short run that was given first frames."""
    lab = new_lab(commands, tmp_path_factory.mktemp("pyramid") / "work", empty_store)
    done = lab.train(*PYRAMID, "trainer.max_steps=2", "trainer.val_check_interval=1000")
    assert done.code == 0, done.err
    return lab


def write_image(path) -> np.ndarray:
    from PIL import Image

    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:20, 4:16] = (225, 25, 35)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_picture_begins_a_video_longer_than_in_training(trained):
    picture = write_image(trained.folder / "first.png")
    where = "hydra.run.dir=samples/image"
    done = trained.generate("image=first.png", "prompt=a red square, moving to the right", "frames=12", where)
    assert done.code == 0, done.err
    videos = sorted((trained.folder / "samples/image/originals").glob("*.mp4"))
    assert len(videos) == 2
    for path in videos:
        with av.open(str(path)) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert frames.shape == (12, 32, 32, 3)  # 8 in training
        assert np.abs(frames[0].astype(int) - picture).max() <= 1
        assert all(np.abs(frame.astype(int) - picture).max() > 1 for frame in frames[1:])


def test_only_first_frames_can_be_given(trained):
    write_image(trained.folder / "first.png")
    done = trained.generate("image=first.png", "last_image=first.png", "prompt=a red square")
    assert done.code == 2 and "Traceback" not in done.err, done.err
