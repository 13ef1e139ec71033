import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidlab.data.video.pictures import read_picture
from vidlab.errors import DataError

SCENE = np.zeros((12, 20, 3), np.uint8)
SCENE[:6, :10], SCENE[:6, 10:], SCENE[6:, :10] = (220, 30, 30), (30, 220, 30), (30, 30, 220)

# How a picture is stored that EXIF's number n says how to turn: TIFF 6.0, "Orientation".
STORED = {
    1: SCENE,
    2: SCENE[:, ::-1],
    3: SCENE[::-1, ::-1],
    4: SCENE[::-1],
    5: SCENE.swapaxes(0, 1),
    6: np.rot90(SCENE, 1),
    7: SCENE.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90(SCENE, -1),
}


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.jpg"])
def test_a_picture_is_upright(tmp_path, number, name):
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(np.ascontiguousarray(STORED[number])).save(
        tmp_path / name, exif=exif, **({"quality": 100, "subsampling": 0} if name == "p.jpg" else {})
    )
    seen = read_picture(tmp_path / name)
    assert seen.shape == SCENE.shape and seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - SCENE).mean() < (5 if name == "p.jpg" else 0.01)


@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.pgm"])
def test_grey_of_sixteen_bits_keeps_its_greys(tmp_path, name):
    """65535 is white, and 257 times a level is that level."""
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / name)
    assert np.array_equal(read_picture(tmp_path / name), np.repeat(levels[..., None], 3, -1))


def png_of_sixteen_bits(colors: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits, chunk by chunk; Pillow writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colors_of_sixteen_bits(tmp_path):
    (tmp_path / "p.png").write_bytes(png_of_sixteen_bits(SCENE.astype(np.uint16) * 257))
    assert np.array_equal(read_picture(tmp_path / "p.png"), SCENE)


def palette() -> Image.Image:
    picture = Image.new("P", (4, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putdata([0, 1, 1, 0])
    return picture


@pytest.mark.parametrize(
    ("picture", "name", "options", "first", "last"),
    [
        (Image.new("1", (4, 4), 1), "p.png", {}, (255, 255, 255), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), "p.png", {}, (77, 77, 77), (77, 77, 77)),
        (Image.new("L", (4, 4), 77), "p.png", {"transparency": 77}, (255, 255, 255), (255, 255, 255)),
        # 51 / 255 is 1/5: 255 + (level - 255) / 5
        (Image.new("LA", (4, 4), (55, 51)), "p.png", {}, (215, 215, 215), (215, 215, 215)),
        (Image.new("RGBA", (4, 4), (255, 5, 105, 51)), "p.png", {}, (255, 205, 225), (255, 205, 225)),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "p.webp", {"lossless": True, "exact": True}, (255,) * 3, (255,) * 3),
        (palette(), "p.png", {}, (10, 20, 30), (10, 20, 30)),
        (palette(), "p.png", {"transparency": 0}, (255, 255, 255), (255, 255, 255)),
        (palette(), "p.png", {"transparency": 1}, (10, 20, 30), (10, 20, 30)),
        (palette(), "p.gif", {"transparency": 0}, (255, 255, 255), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "p.tif", {}, (255, 255, 255), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "p.tif", {}, (255, 0, 0), (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "p.jpg", {"quality": 100}, (0, 0, 0), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_over_white(tmp_path, picture, name, options, first, last):
    picture.save(tmp_path / name, **options)
    seen = read_picture(tmp_path / name)
    assert seen.shape == (picture.height, picture.width, 3)
    assert seen[0, 0].tolist() == list(first) and seen[-1, -1].tolist() == list(last)


@pytest.mark.parametrize("name", ["p.gif", "p.png", "p.webp"])
def test_the_first_picture_of_an_animation(tmp_path, name):
    pictures = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if name == "p.webp" else {}
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], **options)
    assert read_picture(tmp_path / name)[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_white_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 70_000).save(tmp_path / "p.tif")
    with pytest.raises(DataError, match=r"p\.tif has (floating-point|32-bit) values, of which nobody knows"):
        read_picture(tmp_path / "p.tif")


def test_a_picture_is_measured_before_it_is_decoded(tmp_path, monkeypatch):
    """The header alone is read: the rest of the file is not there."""
    for side, said in ((15_000, "has 225 megapixels|more than 178"), (11_400, r"has 130 megapixels \(11400 x 11400\)")):
        (tmp_path / "p.png").write_bytes(
            png_of_sixteen_bits(np.zeros((1, 1, 3)))[:16] + side.to_bytes(4, "big") * 2 + b"\x10\x02\0\0\0"
        )
        content = bytearray((tmp_path / "p.png").read_bytes())
        import zlib

        content += zlib.crc32(bytes(content[12:29])).to_bytes(4, "big") + (8).to_bytes(4, "big") + b"IDATxxxxxxxx"
        (tmp_path / "p.png").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match=said):
                read_picture(tmp_path / "p.png")
    with pytest.raises(DataError, match=r"max_megapixels=0\.0001 are allowed"):
        Image.new("L", (20, 20)).save(tmp_path / "small.png")
        read_picture(tmp_path / "small.png", 0.0001)
    Image.new("L", (330, 10)).save(tmp_path / "long.png")
    with pytest.raises(DataError, match="is 330 x 10: more than 32 times"):
        read_picture(tmp_path / "long.png")


def test_what_is_no_picture_is_named(tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    cases = {
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"just some words",
        "empty.webp": b"",
        # a program to be run by another one
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read as a picture"):
            read_picture(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_picture(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait forever
    for odd in (tmp_path, tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="a folder, a pipe or a device"):
            read_picture(odd)


def test_damaged_pictures_are_read_or_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw = np.random.default_rng(0)
    for name in ("p.png", "p.jpg", "p.webp", "p.gif", "p.tif", "p.bmp"):
        Image.fromarray(SCENE).save(tmp_path / name, **({} if name in ("p.gif", "p.bmp") else {"exif": exif}))
        content = (tmp_path / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for place in draw.integers(0, len(content), draw.integers(1, 6)):
                damaged[place] = draw.choice([0, 255, draw.integers(256)])
            (tmp_path / name).write_bytes(damaged)
            try:
                assert read_picture(tmp_path / name).shape[2] == 3
            except DataError as error:
                assert name in str(error)
