"""Encodes frames to the bytes of an mp4."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

# Number of BT.709 in the H.264 tables of color spaces, primaries and transfer curves.
BT709 = 1


def encode(frames: np.ndarray, fps: float | int, lossless: bool = False) -> bytes:
    """Encode uint8 (T, H, W, 3) RGB frames as the bytes of an mp4.

    Args:
        frames: uint8 (T, H, W, 3).
        fps: frames per second; a key frame is written at least once a second, so seeking stays cheap.
        lossless: True keeps every RGB value exactly: one PNG per frame, which any FFmpeg reads and few players
            show; for small flat graphics it is four times faster and half the size of lossless H.264. False
            writes H.264 in yuv420p with BT.709 colors, which plays everywhere; it needs even sizes, so an odd
            last row or column is repeated once.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T > 0, got {frames.dtype} {frames.shape}")
    if not lossless:
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), "edge")
    return encode_frames(frames, frames.shape[1], frames.shape[2], fps, lossless)


def encode_frames(
    frames: Iterable[np.ndarray], height: int, width: int, fps: float | int, lossless: bool = False
) -> bytes:
    """As ``encode``, of frames that come one by one: uint8 (height, width, 3), of even sides unless lossless."""
    options = {"pred": "none"} if lossless else {"preset": "medium", "crf": "18"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = container.add_stream("png" if lossless else "libx264", rate=rate, options=options)
        context = stream.codec_context
        stream.height, stream.width = height, width
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        context.thread_count = 1
        if not lossless:
            context.gop_size = max(1, int(fps))
            context.max_b_frames = 0
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = ColorRange.MPEG
        for frame in _video_frames(frames, lossless):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _video_frames(frames: Iterable[np.ndarray], lossless: bool) -> Iterator[Any]:
    reformatter = VideoReformatter()
    for array in frames:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        if lossless:
            yield frame
        else:
            yield reformatter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
