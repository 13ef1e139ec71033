"""Makes video files of many kinds with the encoders that PyAV brings."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame n shows n in its gray level, 2 n everywhere, plus a bar that walks to the right."""
    frames = np.zeros((count, height, width, 3), np.uint8) + 2 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    for number, frame in enumerate(frames):
        frame[:, number % width] = 255
    return frames


def encoded(
    frames: np.ndarray,
    container: str,
    codec: str,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rate: int = 24,
    muxing: dict[str, str] | None = None,
    change: Callable[[Any, Any], None] = lambda stream, frame: None,
) -> bytes:
    """A video file.

    Args:
        frames: uint8 (T, H, W, 3).
        container: FFmpeg's name of the muxer.
        codec: FFmpeg's name of the encoder.
        pix_fmt: of the stored frames.
        options: of the encoder.
        times: when each frame is shown, in ``1 / rate`` s; None is one after the other.
        rate: frames per second.
        muxing: options of the muxer.
        change: called with the stream and each frame before it is encoded.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, container_options=muxing or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.thread_count = 1
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, rate)
            change(stream, frame)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def remuxed(
    video: bytes, container: str, change: Callable[[list[Any]], list[Any]] = lambda packets: packets, **how: Any
) -> bytes:
    """The packets of a video in another container, after ``change``."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(buffer, "w", format=container, **how) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        for packet in change(packets):
            packet.stream = stream
            target.mux(packet)
    return buffer.getvalue()


def packed_b_frames(frames: np.ndarray) -> bytes:
    """An AVI as Xvid and DivX wrote them: each B-frame lies in the packet of the frame after it, then an empty one."""
    source = encoded(frames, "avi", "mpeg4", options={"g": "48", "bf": "1", "b_strategy": "0"})
    buffer = io.BytesIO()
    with av.open(io.BytesIO(source)) as reader, av.open(buffer, "w", format="avi") as target:
        stream = target.add_stream_from_template(reader.streams.video[0])
        stored = [bytes(packet) for packet in reader.demux(video=0) if packet.size]
        kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in stored]  # 0 is I, 1 is P, 2 is B
        stored[0] = stored[0].replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p\0\0\1\xb6", 1)  # p is for packed
        contents: list[bytes] = []
        place = 0
        while place < len(stored):
            if place + 1 < len(stored) and kinds[place + 1] == 2:
                contents += [stored[place] + stored[place + 1], b"\0\0\1\xb6\x51\x00"]
                place += 2
            else:
                contents.append(stored[place])
                place += 1
        for number, data in enumerate(contents):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, stream.time_base
            packet.dts = packet.pts = number
            packet.is_keyframe = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 0
            target.mux(packet)
    return buffer.getvalue()
