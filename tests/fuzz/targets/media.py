"""Videos and pictures."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.errors import CorruptClipError

from ..target import Found, PromiseBrokenError, Subject, Target, digest

FRAMES, HEIGHT, WIDTH = 60, 32, 48
SOUGHT = (FRAMES - 2, 50, 1)
# file, structure, codec, pixel format, options
VIDEOS = (
    ("b_frames.mp4", "mp4", "libx264", "yuv420p", {"g": "24", "bf": "2", "preset": "veryfast"}),
    ("lossless.mp4", "mp4", "png", "rgb24", {}),
    ("open_gop.mkv", "ebml", "libx264", "yuv420p", {"g": "12", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}),
    ("vp9.webm", "ebml", "libvpx-vp9", "yuv420p", {"g": "24", "deadline": "realtime", "cpu-used": "8"}),
    ("vp8.webm", "ebml", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("mpeg4.avi", "riff", "mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    ("loop.gif", "gif", "gif", "rgb8", {}),
)


def moving_frames(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3): a picture that moves and grows brighter."""
    base = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    base = base.repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.stack([np.roll(base, n, 1) + np.uint8(2 * (n % 60)) for n in range(count)])


@cache
def video_bytes(
    name: str, codec: str, pixels: str, options: tuple[tuple[str, str], ...], count: int, seed: int
) -> bytes:
    """An encoded file; the format goes by the name."""
    import av

    file = io.BytesIO()
    kind = {"mp4": "mp4", "mkv": "matroska", "webm": "webm", "avi": "avi", "gif": "gif"}[name.rpartition(".")[2]]
    with av.open(file, "w", format=kind) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(24), options=dict(options))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        for frame in moving_frames(count, seed=seed):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def small_video(seed: int = 0) -> bytes:
    """A video of a few hundred bytes, for sets of them."""
    from vidlab.data.video import encode

    return encode(moving_frames(4, 16, 16, seed), 8)


def video_target(name: str, structure: str, codec: str, pixels: str, options: dict[str, str]) -> Target:
    whole: list[Any] = []

    def make(folder: Path) -> Sequence[Subject]:
        from vidlab.data.video import read_frames

        (folder / name).write_bytes(video_bytes(name, codec, pixels, tuple(options.items()), FRAMES, 0))
        whole[:] = read_frames(folder / name)
        return [Subject(name, structure, nodes=True)]

    return Target(f"video.{name}", make, lambda folder: read_video(folder / name, whole))


def read_video(path: Path, undamaged: Sequence[Any] = ()) -> Found:
    """Probe, all frames, and far ones by seeking, from a file and from memory: each fails by itself.

    Frames that are sought are those of the whole, however damaged the file, or those that were there undamaged: one
    that a whole reading lost still counts.
    """
    from vidlab.data.video import probe, read_frames

    def in_memory() -> Any:
        return read_frames(path.read_bytes() if path.is_file() else path, SOUGHT, "clip")

    found, said = {}, []
    readers: dict[str, Callable[[], Any]] = {
        "probe": lambda: probe(path, "clip"),
        "all": lambda: read_frames(path, None, "clip"),
        "sought": lambda: read_frames(path, SOUGHT, "clip"),
        "memory": in_memory,
    }
    for key, read in readers.items():
        try:
            found[key] = read()
        except CorruptClipError as error:
            said.append(str(error))
    for key in {"sought", "memory"} & set(found) if "all" in found else ():
        for place, frame in zip(SOUGHT, found[key], strict=True):
            known = [frames[place] for frames in (found["all"], undamaged) if place < len(frames)]
            if not any(np.array_equal(frame, one) for one in known):
                raise PromiseBrokenError("altered", f"frame {place} differs when it is sought, of {len(found['all'])}")
    return Found({key: digest(value.tobytes() if key != "probe" else value) for key, value in found.items()}, said)


def _picture(name: str) -> bytes:
    from PIL import Image

    pixels, file = moving_frames(1)[0], io.BytesIO()
    images = {
        "grey16.png": lambda: Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 40),
        "alpha.png": lambda: Image.fromarray(np.dstack([pixels, pixels[..., :1]])),
        "palette.png": lambda: Image.fromarray(pixels).quantize(16),
    }
    image = images.get(name, lambda: Image.fromarray(pixels))()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if name.endswith((".jpg", ".webp")) else {}
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2], name.rpartition(".")[2].upper())
    image.save(file, kind, **options)
    return file.getvalue()


def read_picture(path: Path) -> Found:
    """As ``generate.py image=...`` does."""
    from vidlab.pipelines.conditioning_frames import conditioning_frames

    given = conditioning_frames((2, 16, 16), 1, image=str(path))
    assert given is not None
    return Found({"picture": digest(given.pixels.numpy().tobytes())})


def picture_target(name: str, structure: str) -> Target:
    def make(folder: Path) -> Sequence[Subject]:
        (folder / name).write_bytes(_picture(name))
        return [Subject(name, structure, nodes=True)]

    return Target(f"picture.{name}", make, lambda folder: read_picture(folder / name))


PICTURES = (
    ("plain.png", "png"), ("grey16.png", "png"), ("alpha.png", "png"), ("palette.png", "png"), ("photo.jpg", "jpeg"),
    ("photo.webp", "riff"), ("loop.gif", "gif"), ("scan.tif", "bytes"), ("plain.bmp", "bytes"),
)  # fmt: skip
TARGETS = (*(video_target(*one) for one in VIDEOS), *(picture_target(*one) for one in PICTURES))
