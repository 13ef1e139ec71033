"""Videos come out as a player shows them: upright, in proportion, in their colors."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from video_files import encoded

from vidlab.data.video import VideoInfo, encode, probe, probe_closely, read_frames
from vidlab.errors import CorruptClipError

NOISE = np.random.default_rng(1).integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)


def with_matrix(video: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """An mp4 with another display matrix in its track header: x' = a x + c y, y' = b x + d y."""

    def rows(a: float, b: float, c: float, d: float) -> bytes:
        values = (a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30)
        return b"".join(round(value).to_bytes(4, "big", signed=True) for value in values)

    track = video.index(b"tkhd")
    turned = video[:track] + video[track:].replace(rows(1, 0, 0, 1), rows(a, b, c, d), 1)
    assert len(turned) == len(video)
    return turned


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), NOISE),
        ((0, 0, 0, 0), NOISE),  # what some cameras write for none
        ((-1, 0, 0, 1), NOISE[:, :, ::-1]),
        ((1, 0, 0, -1), NOISE[:, ::-1]),
        ((-1, 0, 0, -1), NOISE[:, ::-1, ::-1]),
        ((0, 1, 1, 0), NOISE.swapaxes(1, 2)),
        ((0, 1, -1, 0), np.rot90(NOISE, -1, axes=(1, 2))),  # clockwise
        ((0, -1, 1, 0), np.rot90(NOISE, 1, axes=(1, 2))),
        ((0, -1, -1, 0), NOISE.swapaxes(1, 2)[:, ::-1, ::-1]),
    ],
)
def test_every_display_matrix_of_quarter_turns_and_mirrors(matrix, upright):
    video = with_matrix(encode(NOISE, 8, lossless=True), *matrix)
    assert np.array_equal(read_frames(video), upright)
    assert (probe(video).height, probe(video).width) == upright.shape[1:3]


def test_a_turn_that_is_no_quarter_is_refused():
    video = with_matrix(encode(NOISE, 8, lossless=True), 0.866, 0.5, -0.5, 0.866)
    for call in (probe, read_frames):
        with pytest.raises(CorruptClipError, match="clip_3: it is to be shown turned by 30 degrees"):
            call(video, name="clip_3")


def squeezed(pixel: Fraction, container: str = "mp4") -> bytes:
    """40 x 36 stored pixels of an aspect ratio, left half black, right half white."""
    frames = np.zeros((3, 36, 40, 3), np.uint8)
    frames[:, :, 20:] = 255

    def change(stream, frame):
        stream.codec_context.sample_aspect_ratio = pixel

    return encoded(frames, container, "libx264", options={"crf": "4"}, change=change)


@pytest.mark.parametrize(
    ("pixel", "shown"),
    [
        (Fraction(1), (36, 40)),
        (Fraction(1280, 1281), (36, 40)),  # what a rounded width leaves
        (Fraction(16, 11), (36, 58)),  # 40 * 16 / 11 = 58.2: PAL, wide
        (Fraction(8, 9), (40, 40)),  # 36 * 9 / 8 = 40.5, to even: NTSC
        (Fraction(3, 4), (48, 40)),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_pixels_that_are_not_square_are_stretched(pixel, shown, container):
    video = squeezed(pixel, container)
    info, frames = probe(video), read_frames(video)
    assert (info.height, info.width) == frames.shape[1:3] == shown
    level = frames[1].astype(int).mean(axis=(0, 2))
    middle = shown[1] // 2
    assert level[: middle - 4].max() < 12 and level[middle + 4 :].min() > 243, "the edge stays in the middle"


def test_stretched_and_turned():
    video = with_matrix(squeezed(Fraction(3, 2)), 0, 1, -1, 0)
    assert read_frames(video).shape == (3, 60, 36, 3)
    assert (probe(video).height, probe(video).width) == (60, 36)


def test_a_pixel_that_none_has_is_refused():
    with pytest.raises(CorruptClipError, match="pixels of 1:200 are declared"):
        probe(squeezed(Fraction(1, 200)))


@pytest.mark.parametrize(("kind", "stored", "level"), [(1, 16, 0), (1, 235, 255), (2, 16, 16), (2, 235, 235)])
def test_the_declared_range_of_levels_holds(kind, stored, level):
    """Limited range 16 ... 235 is spread to 0 ... 255, full range is left."""

    def change(stream, frame):
        stream.codec_context.color_range = frame.color_range = kind
        for plane, value in zip(frame.planes, (stored, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)

    video = encoded(np.zeros((2, 32, 32, 3), np.uint8), "matroska", "libx264", options={"qp": "0"}, change=change)
    assert np.abs(read_frames(video).astype(int) - level).max() <= 1


def test_transparent_parts_lie_on_white():
    def change(stream, frame):
        rgba = np.zeros((8, 8, 4), np.uint8)
        rgba[..., 0] = 200
        rgba[:, :4, 3], rgba[:, 4:, 3] = 255, 51  # 51 / 255 = 1/5 of it, 4/5 white
        beyond = frame.planes[0].line_size - 32
        frame.planes[0].update(np.pad(rgba.reshape(8, 32), ((0, 0), (0, beyond))).tobytes())

    video = encoded(np.zeros((1, 8, 8, 3), np.uint8), "mov", "png", pix_fmt="rgba", change=change)
    frame = read_frames(video)[0]
    assert frame[0, 0].tolist() == [200, 0, 0] and frame[0, 7].tolist() == [244, 204, 204]
    assert probe_closely(video).remarks == ("transparent, read over white",)


def test_a_gif_without_a_background_is_white():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 250, 0, 0])
    picture.paste(0, (0, 0, 4, 8))
    file = io.BytesIO()
    picture.save(file, "GIF", transparency=0)
    frame = read_frames(file.getvalue())[0]
    assert frame[0, 0].tolist() == [255, 255, 255] and frame[0, 7].tolist() == [250, 0, 0]
    assert probe_closely(file.getvalue()).remarks == ()


def test_what_is_not_read_as_it_is_meant_is_said():
    def hdr(stream, frame):
        stream.codec_context.color_trc = frame.color_trc = 16

    frames = np.zeros((2, 64, 64, 3), np.uint8)
    video = encoded(frames, "mp4", "libx264", change=hdr)
    (remark,) = probe_closely(video).remarks
    assert remark.startswith("HDR (PQ)")
    video = encoded(frames, "mp4", "libx264", options={"x264-params": "interlaced=1"})
    (remark,) = probe_closely(video).remarks
    assert remark.startswith("interlaced")
    video = encoded(frames, "mp4", "libx264")
    assert probe_closely(video).remarks == () and probe(video) == VideoInfo(2, 64, 64, 24.0, 2 / 24)
