import numpy as np
import pytest
import torch
from PIL import Image

from vidlab.data.video import encode
from vidlab.errors import UserError
from vidlab.pipelines.conditioning_frames import conditioning_frames

SHAPE = (6, 8, 8)


def given(**settings):
    return conditioning_frames(SHAPE, 3, **settings)


@pytest.fixture
def pictures(tmp_path):
    """A wide picture, red left and right of a blue square, and a green one."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[...] = (255, 0, 0)
    wide[:, 20:40] = (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "green.png")
    return tmp_path


def test_nothing_given():
    assert given() is None


def test_an_image_is_the_first_frame_scaled_and_cropped_to_its_centre(pictures):
    found = given(image=str(pictures / "wide.png"))
    assert found.known.tolist() == [True] + [False] * 5
    blue = torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(found.pixels[:, 0, :, 1:-1], blue.expand(3, 8, 6), atol=0.02, rtol=0)
    assert not found.pixels[:, 1:].any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.filterwarnings("error")
def test_a_picture_is_taken_without_a_warning(tmp_path, mode):
    """Pillow's arrays are read-only, and torch warns of such."""
    Image.new(mode, (8, 8)).save(tmp_path / "picture.png")
    assert given(image=str(tmp_path / "picture.png")).known[0]


def test_two_images_are_both_ends(pictures):
    found = given(image=str(pictures / "wide.png"), last_image=str(pictures / "green.png"))
    assert found.known.tolist() == [True, False, False, False, False, True]
    assert found.pixels[:, -1, 4, 4].tolist() == [-1, 1, -1]


def test_a_video_gives_its_last_frames(tmp_path):
    frames = np.zeros((5, 8, 8, 3), np.uint8)
    frames += (np.arange(5, dtype=np.uint8) * 51)[:, None, None, None]
    (tmp_path / "clip.mp4").write_bytes(encode(frames, 8, lossless=True))
    found = given(video=str(tmp_path / "clip.mp4"), video_frames=2)
    assert found.known.tolist() == [True, True, False, False, False, False]
    torch.testing.assert_close(found.pixels[0, :2, 0, 0], torch.tensor([3, 4]) * 51 / 127.5 - 1, atol=0.01, rtol=0)
    assert given(video=str(tmp_path / "clip.mp4")).known.sum() == 3  # the usual number


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "absent.png"}, "image=absent.png: no such file"),
        ({"video": "absent.mp4"}, "video=absent.mp4: no such file"),
        ({"image": "{}/broken.png"}, "cannot be read as a picture"),
        ({"image": "{}/green.png", "video": "{}/clip.mp4"}, "goes with neither image= nor last_image="),
        (
            {"video": "{}/clip.mp4", "video_frames": 6},
            "video_frames=6 must be at least 1 and below the clip's 6 frames",
        ),
        ({"video": "{}/clip.mp4", "video_frames": 4}, "has 2 frames; video_frames=4 are needed"),
    ],
)
def test_what_cannot_be_given(settings, message, pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "clip.mp4").write_bytes(encode(np.zeros((2, 8, 8, 3), np.uint8), 8))
    filled = {key: v.format(pictures) if isinstance(v, str) else v for key, v in settings.items()}
    with pytest.raises(UserError, match=message):
        given(**filled)


def test_a_picture_of_a_phone_is_upright(tmp_path):
    """Red above blue, stored turned, as EXIF says."""
    scene = np.zeros((16, 16, 3), np.uint8)
    scene[:8], scene[8:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(scene, 1))).save(tmp_path / "p.png", exif=exif)
    pixels = given(image=str(tmp_path / "p.png")).pixels[:, 0]
    assert pixels[0, 0].min() > 0.9 and pixels[2, -1].min() > 0.9


def test_what_is_too_large_is_said_with_the_key_and_the_setting(tmp_path, pictures):
    with pytest.raises(
        UserError, match=r"^image=.*wide.png has 0.0012 megapixels \(60 x 20\), and max_megapixels=0.001"
    ):
        given(image=str(pictures / "wide.png"), max_megapixels=0.001)
    (tmp_path / "take:2.mp4").write_bytes(encode(np.zeros((8, 40, 40, 3), np.uint8), 8))
    with pytest.raises(UserError, match=r"^video=.*take:2.mp4: .*max_megapixels=0.001"):
        given(video=str(tmp_path / "take:2.mp4"), max_megapixels=0.001)
    assert given(video=str(tmp_path / "take:2.mp4")).known.sum() == 3
    with pytest.raises(UserError, match="max_megapixels=0: it must be a number above 0"):
        given(image=str(pictures / "wide.png"), max_megapixels=0)
