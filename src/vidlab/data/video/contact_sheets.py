"""Contact sheets, GIFs, and mp4 files that play everywhere.

Frames are uint8 RGB, a video is ``(T, H, W, 3)``, several of one size are ``(N, T, H, W, 3)``. Small clips
are enlarged by repeating pixels, so what is seen is what the model made.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vidlab.data.video import encode
from vidlab.data.video.text_labels import Label
from vidlab.files import written_aside

GUTTER = 2
LINE_HEIGHT = 18
MIN_SHEET_WIDTH = 256  # so that a prompt beside few frames stays readable
PAPER, INK = (255, 255, 255), (20, 20, 20)
GIF_COLORS = 256


def upscale_nearest(frames: UInt8[np.ndarray, "*N H W 3"], min_side: int = 256) -> UInt8[np.ndarray, "*N h w 3"]:
    """Repeat pixels by the smallest whole factor that makes the shorter side at least ``min_side``."""
    factor = max(1, math.ceil(min_side / min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def contact_sheet(
    videos: UInt8[np.ndarray, "N T H W 3"], labels: Sequence[str] | None = None, min_side: int = 64
) -> UInt8[np.ndarray, "h w 3"]:
    """Frames along x, one video per row, its label above the row in any script, wrapped to the width.

    Args:
        videos: (N, T, H, W, 3).
        labels: one text per video; None leaves the space out.
        min_side: frames are enlarged until their shorter side has this many pixels.
    """
    if labels is not None and len(labels) != len(videos):
        raise ValueError(f"{len(labels)} labels for {len(videos)} videos")
    videos = upscale_nearest(videos, min_side)
    _, count, height, width, _ = videos.shape
    sheet_width = max(count * (width + GUTTER) + GUTTER, MIN_SHEET_WIDTH if labels else 0)
    texts = [Label(label) for label in labels or [""] * len(videos)]
    wrapped = [label.lines(sheet_width - 2 * GUTTER) if labels else [] for label in texts]
    sheet_height = sum(len(lines) * LINE_HEIGHT + height + GUTTER for lines in wrapped) + GUTTER
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    draw, y = ImageDraw.Draw(sheet), GUTTER
    for label, lines, video in zip(texts, wrapped, videos, strict=True):
        for line in lines:
            label.draw(draw, (2 * GUTTER, y), line, INK)
            y += LINE_HEIGHT
        for index, frame in enumerate(video):
            sheet.paste(Image.fromarray(frame), (GUTTER + index * (width + GUTTER), y))
        y += height + GUTTER
    return np.asarray(sheet)


def tile(videos: UInt8[np.ndarray, "N T H W 3"], columns: int | None = None) -> UInt8[np.ndarray, "T h w 3"]:
    """Several videos side by side in one, row by row; about as many columns as rows unless given."""
    count, frames, height, width, _ = videos.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (frames, rows * (height + GUTTER) + GUTTER, columns * (width + GUTTER) + GUTTER, 3)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for index, video in enumerate(videos):
        y = GUTTER + index // columns * (height + GUTTER)
        x = GUTTER + index % columns * (width + GUTTER)
        canvas[:, y : y + height, x : x + width] = video
    return canvas


def write_gif(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> Path:
    """Write a GIF that loops forever, with one palette for all frames so that colors do not flicker.

    A GIF counts hundredths of a second: single frames are rounded, the whole keeps its length. Repeated
    frames are stored once and shown longer.
    """
    flat = frames.reshape(-1, 1, 3)
    colors = _unique_colors(flat)
    exact = len(colors) <= GIF_COLORS
    sample = Image.fromarray(colors[:, None] if exact else flat.reshape(-1, frames.shape[2], 3))
    palette = sample.quantize(GIF_COLORS, method=Image.Quantize.MEDIANCUT)
    dither = Image.Dither.NONE if exact else Image.Dither.FLOYDSTEINBERG
    images = [Image.fromarray(frame).quantize(palette=palette, dither=dither) for frame in frames]
    ticks = np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int))
    durations = [max(2, int(tick)) * 10 for tick in ticks]  # browsers slow anything below 20 ms down
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        images[0].save(aside, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path


def _unique_colors(pixels: UInt8[np.ndarray, "*N 3"]) -> UInt8[np.ndarray, "count 3"]:
    """Each color once, by red, green and blue; as numbers of 24 bits they are sorted in a tenth of the time."""
    shifts = np.array([16, 8, 0], np.uint32)
    found = np.unique((pixels.astype(np.uint32) << shifts).sum(-1, dtype=np.uint32))
    return (found[:, None] >> shifts & 255).astype(np.uint8)


def write_png(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a picture."""
    with written_aside(path) as aside:
        Image.fromarray(image).save(aside, "PNG")
    return path


def write_playable_mp4(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> Path:
    """Write an mp4 (H.264, yuv420p, BT.709) enlarged to at least 256 pixels; plays in browsers and slides."""
    return _write_streamable(path, encode(upscale_nearest(frames), float(fps)))


def write_lossless_mp4(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> Path:
    """Write an mp4 that keeps every RGB value at the original size, for metrics; few players show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_bytes(encode(frames, float(fps), lossless=True))
    return path


def grid_mp4(path: Path, videos: UInt8[np.ndarray, "N T H W 3"], fps: float | int, columns: int | None = None) -> Path:
    """Write several videos into one playable mp4, tiled row by row."""
    return _write_streamable(path, encode(tile(upscale_nearest(videos, 128), columns), float(fps)))


def _write_streamable(path: Path, content: bytes) -> Path:
    """Write an mp4 with its table of contents in front, so browsers start before the file has arrived."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"}  # rewrites the file by its name, so it cannot be done in memory
    with (
        written_aside(path) as aside,
        av.open(io.BytesIO(content)) as source,
        av.open(str(aside), "w", "mp4", options=options) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:  # the empty packet at the end
                packet.stream = stream
                target.mux(packet)
    return path
