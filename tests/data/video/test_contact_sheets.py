import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from vidlab.data.video import contact_sheets as media
from vidlab.data.video import probe, read_frames


@pytest.fixture
def videos() -> np.ndarray:
    """Two videos of 4 frames, 8 x 12, whose value tells video and frame apart."""
    value = 100 * np.arange(2)[:, None] + 10 * np.arange(4)[None]
    return np.broadcast_to(value[..., None, None, None], (2, 4, 8, 12, 3)).astype(np.uint8)


def test_upscale_repeats_pixels_by_a_whole_factor():
    frames = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    large = media.upscale_nearest(frames, min_side=5)
    assert large.shape == (1, 6, 9, 3)  # ceil(5 / 2) = 3
    assert (large[:, 1::3, 1::3] == frames).all()
    assert media.upscale_nearest(large, min_side=5) is not None
    assert media.upscale_nearest(large, min_side=5).shape == large.shape


def test_contact_sheet_places_frames_along_x_and_videos_along_y(videos):
    sheet = media.contact_sheet(videos, min_side=64)
    assert sheet.shape == (2 * 66 + 2, 4 * 98 + 2, 3)  # 8 x 12 becomes 64 x 96, gutters of 2
    for row in range(2):
        for frame in range(4):
            area = sheet[2 + 66 * row : 66 + 66 * row, 2 + 98 * frame : 98 + 98 * frame]
            assert (area == 100 * row + 10 * frame).all()
    assert (sheet[:2] == 255).all()


def test_contact_sheet_writes_labels_above_rows_and_wraps_them(videos):
    one = media.contact_sheet(videos, ["red", "blue"])
    assert one.shape[0] == 2 * (18 + 66) + 2
    assert one[2:20].min() < 80 and one[86:104].min() < 80, "ink above both rows"
    wrapped = media.contact_sheet(videos, ["red " * 60, "blue"])
    assert wrapped.shape[0] > one.shape[0] and wrapped.shape[1] == one.shape[1]
    narrow = media.contact_sheet(videos[:, :1], ["a prompt", "b"])
    assert narrow.shape[1] == media.MIN_SHEET_WIDTH
    with pytest.raises(ValueError, match="1 labels for 2 videos"):
        media.contact_sheet(videos, ["only one"])


def test_gif_keeps_colors_and_total_length_and_loops(tmp_path, videos):
    path = media.write_gif(tmp_path / "new" / "clip.gif", videos[1], fps=8)
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert (np.stack(shown) == videos[1]).all()
    assert sum(lengths) == 500  # 4 frames at 8 per second, in milliseconds


def test_gif_of_many_colors_stays_close(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frame = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90)], -1)
    path = media.write_gif(tmp_path / "ramp.gif", frame[None].astype(np.uint8).repeat(2, 0), fps=10)
    shown = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(shown - frame).mean() < 12  # 4096 colors on 256: cells of about 16 x 16, dithered


def test_playable_mp4_is_large_even_streamable_and_bt709(tmp_path):
    frames = np.full((6, 33, 35, 3), (200, 60, 30), dtype=np.uint8)
    path = media.write_playable_mp4(tmp_path / "clip.mp4", frames, fps=8)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (6, 264, 280, 8.0)  # factor 8
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)
    assert np.abs(read_frames(path).astype(int) - (200, 60, 30)).max() <= 4


def test_lossless_mp4_keeps_every_value(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 18, 22, 3), dtype=np.uint8)
    path = media.write_lossless_mp4(tmp_path / "clip.mp4", frames, fps=12)
    assert (read_frames(path) == frames).all()


def test_tile_is_row_by_row_and_leaves_empty_places_white(videos):
    three = np.concatenate([videos, videos[:1] + 7])
    tiled = media.tile(three)
    assert tiled.shape == (4, 2 * 10 + 2, 2 * 14 + 2, 3)
    assert (tiled[3, 2:10, 16:28] == 130).all(), "second video, top right"
    assert (tiled[3, 12:20, 2:14] == 37).all(), "third video, bottom left"
    assert (tiled[:, 12:20, 16:28] == 255).all()


def test_grid_mp4_shows_all_videos(tmp_path, videos):
    path = media.grid_mp4(tmp_path / "grid.mp4", videos, fps=4, columns=1)
    frames = read_frames(path)
    assert frames.shape == (4, 2 * (128 + 2) + 2, 192 + 4, 3)
    assert abs(int(frames[2, 196, 100, 0]) - 120) <= 3, "second video, third frame"
