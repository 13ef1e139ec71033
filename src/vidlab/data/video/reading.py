"""Probes a video and reads its frames by number."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlab.data.video.container import DecodeLimits, opened, video_stream
from vidlab.data.video.frames import FrameConverter, FrameStore
from vidlab.data.video.seek import PacketCounter, Packets, is_far, seek_and_decode
from vidlab.errors import CorruptClipError

# Frames per second that a video may have: from one in some minutes to those of the fastest cameras.
SLOWEST, FASTEST = 1e-3, 1e5

# To FFmpeg's decoders: any damage that they notice is an error.
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}

# Numbers of the transfer curves of HDR in ITU-T H.273, PQ and HLG.
HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class VideoInfo:
    """Frames, size and rate of a video file.

    Args:
        frames: number of frames that can be decoded.
        height: pixels as shown: upright and square.
        width: pixels as shown.
        fps: frames per second, the average for variable frame rates.
        duration: seconds, ``frames / fps``.
    """

    frames: int
    height: int
    width: int
    fps: float
    duration: float


@dataclass(frozen=True)
class ProbedVideo:
    """A video file and what of it does not come out as its maker meant.

    Args:
        info: what it shows.
        remarks: what is read otherwise than a player shows it, a few words each.
    """

    info: VideoInfo
    remarks: tuple[str, ...]


def probe(source: Path | bytes | io.RawIOBase, name: str = "", limits: DecodeLimits | None = None) -> VideoInfo:
    """Frame count, size and rate of a video.

    Reads the file once and decodes its first frame: the count a container declares is missing or wrong for
    webm, avi and edited mp4 files, and a file whose first frame does not decode is of no use.

    Raises:
        CorruptClipError: naming the file and what is wrong with it.
    """
    return probe_closely(source, name, limits).info


def probe_closely(
    source: Path | bytes | io.RawIOBase, name: str = "", limits: DecodeLimits | None = None
) -> ProbedVideo:
    """As ``probe``, and what is read otherwise than a player shows it: HDR, interlaced and transparent video."""
    limits = limits or DecodeLimits()
    with opened(source, name) as file:
        with video_stream(file, limits) as (container, stream):
            packets, first = _first_frame(container, stream)
            # An mp4 lists its frames in a table, so a cut-off file is one that holds fewer than the table says.
            if "mp4" in container.format.name and stream.frames > packets.intact:
                raise CorruptClipError(f"cut off: {packets.intact} of {stream.frames} declared frames are there")
            converter = FrameConverter(stream, limits)
            height, width = converter.shape(first)
            fps = _frame_rate(stream, packets)
            remarks = tuple(_remarks(stream, first, converter))
        frames = packets.shown
        if packets.cut:  # some frames cannot be decoded
            with video_stream(file, limits) as (container, stream):
                frames = sum(1 for _ in container.decode(stream))
        return ProbedVideo(VideoInfo(frames, height, width, fps, frames / fps), remarks)


def _first_frame(container: Any, stream: Any) -> tuple[Packets, Any]:
    """All packets, and the first frame."""
    counter, first = PacketCounter(stream), None
    for packet in container.demux(stream):
        counter.add(packet)
        if first is None:
            first = next(iter(packet.decode()), None)
    packets = counter.packets()
    if packets.shown == 0:
        raise CorruptClipError("the video stream has no frames")
    if first is None:
        raise CorruptClipError("the first frame cannot be decoded")
    return packets, first


def read_frames(
    source: Path | bytes | io.RawIOBase,
    indices: Sequence[int] | None = None,
    name: str = "",
    limits: DecodeLimits | None = None,
) -> np.ndarray:
    """Decode frames as uint8 (T, H, W, 3) RGB, in the order of ``indices``; None means every frame.

    Frames are those of a decode of the whole file, by number. In mp4, mov, mkv and webm far ones are reached by
    seeking to the key frame before them, where the file's times tell their numbers beyond doubt; else, and in all
    other containers, the file is decoded from its beginning: slower, same frames. A frame that was lost before the
    one sought, in a damaged file, still counts.

    Rotated and mirrored video comes out upright, pixels that are not square are stretched to be (bicubic), gray and
    deep video becomes 8-bit RGB, and transparent parts are shown over white. HDR keeps its curve and interlaced
    frames their combs: ``probe_closely`` names such clips.

    Args:
        source: a file by path or open, which is closed, or the bytes of one.
        indices: frame numbers, in any order, repeats allowed.
        name: what to call the clip in errors; a path names itself.
        limits: what decoding may take; None is the default.

    Raises:
        CorruptClipError: naming the clip, when it cannot be decoded, ends before a wanted frame or passes a limit.
    """
    wanted = None if indices is None else sorted(set(indices))
    if wanted is not None and (not wanted or wanted[0] < 0):
        raise ValueError(f"indices must be non-empty and not negative, got {indices!r}")
    limits = limits or DecodeLimits()
    with opened(source, name) as file:
        with video_stream(file, limits) as (container, stream):
            found = FrameStore(stream, len(wanted) if wanted else stream.frames, limits)
            complete = _decode(container, stream, wanted, found)
        if not complete:  # what was sought is not certain
            with video_stream(file, limits) as (container, stream):
                found = FrameStore(stream, len(wanted or ()), limits)
                _decode_in_order(container, stream, wanted, found)
        if not found.places:
            raise CorruptClipError("no frame can be decoded")
        missing = [index for index in wanted or () if index not in found.places]
        if missing:
            raise CorruptClipError(f"frame {missing[0]} is wanted but the video ends before it")
        return found.take(range(len(found.places)) if indices is None else indices)


def _decode(container: Any, stream: Any, wanted: Sequence[int] | None, found: FrameStore) -> bool:
    """Decode the wanted frames, far ones by seeking; False where that could not tell them for certain."""
    if wanted is None or not is_far(container, wanted):
        _decode_in_order(container, stream, wanted, found)
        return True
    # a decoder hides damage by what it has shown before, which after a seek is something else
    stream.codec_context.options = STRICT
    try:
        return seek_and_decode(container, stream, wanted, found)
    except av.error.FFmpegError:
        return False  # a damaged index leads nowhere; the file may still be read from its beginning


def _decode_in_order(container: Any, stream: Any, wanted: Sequence[int] | None, found: FrameStore) -> None:
    """Decode from the beginning until the last wanted frame."""
    keep = None if wanted is None else set(wanted)
    for index, frame in enumerate(container.decode(stream)):
        if keep is None or index in keep:
            found.add(index, frame)
        if wanted is not None and index >= wanted[-1]:
            break


def _frame_rate(stream: Any, packets: Packets) -> float:
    """The declared average rate, unless the frame times contradict it by more than 2 %.

    Raises:
        CorruptClipError: there is none, or one that no camera has.
    """
    declared = float(stream.average_rate or stream.base_rate or 0)
    rate = declared
    if packets.in_order and packets.shown > 1:
        span = float((int(packets.times[-1]) - int(packets.times[0])) * stream.time_base)
        measured = (packets.shown - 1) / span
        if not declared or not abs(measured / declared - 1) <= 0.02:
            rate = measured
    if not rate:
        raise CorruptClipError("no frame rate is declared and the frames carry no times")
    if not SLOWEST <= rate <= FASTEST:
        raise CorruptClipError(f"a rate of {rate:g} frames per second is declared, which no video has")
    return rate


def _remarks(stream: Any, frame: Any, converter: FrameConverter) -> Iterator[str]:
    """What of a stream does not come out as its maker meant."""
    if frame.color_trc in HDR:
        yield f"HDR ({HDR[frame.color_trc]}), read without tone mapping: pale on SDR screens"
    if frame.interlaced_frame:
        yield "interlaced, read with both fields in one frame: combs where something moves"
    if converter.transparent(frame):
        yield "transparent, read over white"
    elif stream.metadata.get("alpha_mode") == "1":
        yield "transparent, read without its transparency"
