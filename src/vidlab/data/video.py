"""Video files to frames and back, with PyAV: probe, read by frame number, encode, convert to pixels.

Frames are uint8 (T, H, W, 3) RGB. Frame numbers count the frames a decoder shows, from 0. One decoding thread
per
file: data-loader workers bring the parallelism, and threads only cost time on small clips.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import CorruptClipError

# Decoding a few dozen frames is cheaper than listing every packet of the file in order to seek.
SEEK_DISTANCE = 48

# Frames that room is made for at once; a file may declare any number.
MOST_EXPECTED = 256

# Files that name other files or addresses (playlists) must not make the reader open those.
OPEN_OPTIONS = {"protocol_whitelist": "file"}

# Number of BT.709 in the H.264 tables of colour spaces, primaries and transfer curves.
BT709 = 1

# libav prints decoder complaints to stderr; what matters of them is raised as CorruptClipError.
av.logging.set_level(None)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file shows.

    Args:
        frames: number of frames that can be decoded.
        height: pixels, after rotation metadata is applied.
        width: pixels, after rotation metadata is applied.
        fps: frames per second, the average for variable frame rates.
        duration: seconds, ``frames / fps``.
    """

    frames: int
    height: int
    width: int
    fps: float
    duration: float


@dataclass(frozen=True)
class _Packets:
    """The packets of a video stream: sorted presentation times of shown frames, and how many are intact."""

    times: np.ndarray
    intact: int
    shown: int

    @property
    def seekable(self) -> bool:
        """True when each shown frame has its own presentation time, so a time names a frame number."""
        return len(self.times) == self.shown and bool((np.diff(self.times) > 0).all())


def probe(source: Path | bytes | io.RawIOBase, name: str = "") -> VideoInfo:
    """Frame count, size and rate of a video.

    Reads the file once and decodes its first frame: the count a container declares is missing or wrong for
    webm, avi and edited mp4 files, and a file whose first frame does not decode is of no use.

    Raises:
        CorruptClipError: naming the file and what is wrong with it.
    """
    with _open(source, name) as (container, stream):
        packets = _list_packets(container, stream)
        # An mp4 lists its frames in a table, so a cut-off file is one that holds fewer than the table says.
        if "mp4" in container.format.name and stream.frames > packets.intact:
            raise CorruptClipError(f"cut off: {packets.intact} of {stream.frames} declared frames are there")
        if packets.shown == 0:
            raise CorruptClipError("the video stream has no frames")
        container.seek(0)
        first = next(container.decode(stream), None)
        if first is None:
            raise CorruptClipError("the first frame cannot be decoded")
        height, width = first.height, first.width
        if first.rotation % 180:
            height, width = width, height
        fps = _frame_rate(stream, packets)
        return VideoInfo(packets.shown, height, width, fps, packets.shown / fps)


def read_frames(
    source: Path | bytes | io.RawIOBase, indices: Sequence[int] | None = None, name: str = ""
) -> np.ndarray:
    """Decode frames as uint8 (T, H, W, 3) RGB, in the order of ``indices``; None means every frame.

    Far frames are reached by seeking to the key frame before them. A file whose packets carry no usable times
    (some avi) is decoded from its beginning: slower, same frames. Grey, 10-bit and rotated video comes out as
    upright 8-bit RGB. Non-square pixels are not stretched.

    Args:
        source: a file by path or open at its start, which is closed, or the bytes of one.
        indices: frame numbers, in any order, repeats allowed.
        name: what to call the clip in errors; a path names itself.

    Raises:
        CorruptClipError: naming the clip, when it cannot be decoded or ends before a wanted frame.
    """
    wanted = None if indices is None else sorted(set(indices))
    if wanted is not None and (not wanted or wanted[0] < 0):
        raise ValueError(f"indices must be non-empty and not negative, got {indices!r}")
    with _open(source, name) as (container, stream):
        if wanted is None:
            found = _decode(container, stream, None)
            if not found.places:
                raise CorruptClipError("no frame can be decoded")
            return found.take(range(len(found.places)))
        sought = _seek_and_decode(container, stream, wanted)
        if sought is None:
            container.seek(0)
            sought = _decode(container, stream, wanted)
        missing = [index for index in wanted if index not in sought.places]
        if missing:
            raise CorruptClipError(f"frame {missing[0]} is wanted but the video ends before it")
        return sought.take(indices or ())


def encode(frames: np.ndarray, fps: float | int, lossless: bool = False) -> bytes:
    """Encode uint8 (T, H, W, 3) RGB frames as the bytes of an mp4.

    Args:
        frames: uint8 (T, H, W, 3).
        fps: frames per second; a key frame is written at least once a second, so seeking stays cheap.
        lossless: True keeps every RGB value exactly: one PNG per frame, which any FFmpeg reads and few players
            show; for small flat graphics it is four times faster and half the size of lossless H.264. False
            writes H.264 in yuv420p with BT.709 colours, which plays everywhere; it needs even sizes, so an odd
            last row or column is repeated once.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T > 0, got {frames.dtype} {frames.shape}")
    if not lossless:
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), "edge")
    options = {"pred": "none"} if lossless else {"preset": "medium", "crf": "18"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = container.add_stream("png" if lossless else "libx264", rate=rate, options=options)
        context = stream.codec_context
        stream.height, stream.width = frames.shape[1:3]
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


def to_pixels(frames: np.ndarray) -> Float[Tensor, "3 T H W"]:
    """uint8 (T, H, W, 3) frames as float32 pixels in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    # colours are brought apart while a pixel is one byte, not four
    planes = np.ascontiguousarray(frames.transpose(3, 0, 1, 2))
    return torch.from_numpy(planes).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Float[Tensor, "3 T H W"]) -> np.ndarray:
    """Pixels in [-1, 1] as uint8 (T, H, W, 3) frames: rounded, values outside the range clamped."""
    scaled = ((pixels.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.to("cpu", torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()


@contextmanager
def _open(source: Path | bytes | io.RawIOBase, name: str) -> Iterator[tuple[Any, Any]]:
    """The open container and its first video stream; failures inside become a named CorruptClipError."""
    label = name or (str(source) if isinstance(source, Path) else "clip in memory")
    size = _size(source)
    if size is None:
        raise CorruptClipError(f"{label}: no such file")
    if size == 0:
        raise CorruptClipError(f"{label}: the file is empty (0 bytes)")
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with (
            opened if isinstance(opened, io.IOBase) else nullcontext(),
            av.open(str(opened) if isinstance(opened, Path) else opened, options=OPEN_OPTIONS) as container,
        ):
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
                raise CorruptClipError(f"no video stream, only {', '.join(kinds)}")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream
    except CorruptClipError as error:
        raise CorruptClipError(f"{label}: {error}") from None
    except av.error.FFmpegError as error:
        raise CorruptClipError(f"{label}: not a readable video ({error.strerror})") from error


def _size(source: Path | bytes | io.RawIOBase) -> int | None:
    """Bytes of a video; None when there is no such file."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, Path):
        return source.stat().st_size if source.is_file() else None
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return size


def _list_packets(container: Any, stream: Any) -> _Packets:
    """Demux the whole stream without decoding it."""
    times: list[int] = []
    intact = shown = 0
    hides_frames = stream.codec_context.name in ("vp8", "libvpx")
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        intact += not packet.is_corrupt
        # VP8 has packets that are only referred to and never shown: bit 4 of the first byte is show_frame.
        if packet.is_discard or (hides_frames and not bytes(packet)[0] & 0x10):
            continue
        shown += 1
        if packet.pts is not None:
            times.append(packet.pts)
    return _Packets(np.sort(np.asarray(times, dtype=np.int64)), intact, shown)


def _frame_rate(stream: Any, packets: _Packets) -> float:
    """The declared average rate, unless the frame times contradict it by more than 2 %."""
    declared = float(stream.average_rate or stream.base_rate or 0)
    if packets.seekable and packets.shown > 1:
        span = float((packets.times[-1] - packets.times[0]) * stream.time_base)
        measured = (packets.shown - 1) / span
        if not declared or abs(measured / declared - 1) > 0.02:
            return measured
    if not declared:
        raise CorruptClipError("no frame rate is declared and the frames carry no times")
    return declared


class _Frames:
    """Decoded frames by number, copied once, into one array that grows.

    Args:
        expected: frames there will be, where that is known.
    """

    def __init__(self, expected: int) -> None:
        self.places: dict[int, int] = {}
        self._expected = min(max(expected, 1), MOST_EXPECTED)
        self._array = np.empty((0, 0, 0, 3), np.uint8)
        self._reformatter = VideoReformatter()

    def add(self, index: int, frame: Any) -> None:
        """Keep a frame of PyAV as upright RGB."""
        rgb, used = _to_rgb(frame, self._reformatter), len(self.places)
        if used == 0:
            self._array = np.empty((self._expected, *rgb.shape), np.uint8)
        if rgb.shape != self._array.shape[1:]:
            raise CorruptClipError(f"frame {index} has another size than those before it")
        if used == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[used] = rgb
        self.places[index] = used

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, which must be there."""
        places = [self.places[index] for index in indices]
        if places == list(range(len(self._array))):
            return self._array
        return self._array[places]


def _decode(container: Any, stream: Any, wanted: Sequence[int] | None) -> _Frames:
    """Decode from the current position, taken as frame 0, until the last wanted frame."""
    found = _Frames(stream.frames if wanted is None else len(wanted))
    keep = None if wanted is None else set(wanted)
    for index, frame in enumerate(container.decode(stream)):
        if keep is None or index in keep:
            found.add(index, frame)
        if wanted is not None and index >= wanted[-1]:
            break
    return found


def _frame_times(container: Any, stream: Any) -> np.ndarray | None:
    """Presentation times of the frames in order, int64; None where times name no frames.

    An mp4 lists the decoding times of its packets. Where those are evenly spaced, fill the stream's duration and none
    is hidden, the presentation times are evenly spaced too; otherwise all packets are read.
    """
    if "mp4" in container.format.name and stream.start_time is not None:
        entries = stream.index_entries
        times = np.array([entry.timestamp for entry in entries if not entry.is_discard], np.int64)
        step = int(times[1] - times[0]) if len(times) > 1 else 0
        even = step > 0 and bool((np.diff(times) == step).all())
        if even and len(times) == len(entries) == stream.frames and stream.duration == step * len(times):
            return stream.start_time + step * np.arange(len(times), dtype=np.int64)
    packets = _list_packets(container, stream)
    return packets.times if packets.seekable else None


def _seek_and_decode(container: Any, stream: Any, wanted: Sequence[int]) -> _Frames | None:
    """Decode the wanted frames, seeking over unwanted stretches; None where times name no frames."""
    gaps = np.diff(np.asarray([0, *wanted]))
    if gaps.max() <= SEEK_DISTANCE:
        return None
    times = _frame_times(container, stream)
    if times is None or wanted[-1] >= len(times):
        return None
    found = _Frames(len(wanted))
    for run in np.split(np.asarray(wanted), np.flatnonzero(gaps[1:] > SEEK_DISTANCE) + 1):
        container.seek(int(times[run[0]]), stream=stream, backward=True)
        keep, last = set(run.tolist()), int(run[-1])
        for frame in container.decode(stream):
            index = -1 if frame.pts is None else int(np.searchsorted(times, frame.pts))
            # a key frame that needs what came before it decodes as rubbish after a seek; FFmpeg flags it
            if frame.is_corrupt or not 0 <= index < len(times) or times[index] != frame.pts:
                return None
            if index in keep:
                found.add(index, frame)
            if index >= last:
                break
        if not keep <= found.places.keys():
            return None
    return found


def _to_rgb(frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """One decoded frame as upright uint8 (H, W, 3), where possible a view of the frame."""
    rotation = frame.rotation
    if frame.format.name == "gbrp":
        rgb = frame.to_ndarray()  # RGB needs no colour conversion: exact, and half the time
    else:
        if frame.format.name != "rgb24":
            frame = reformatter.reformat(frame, format="rgb24", threads=1)
        (plane,) = frame.planes
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rgb = lines[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)
    return np.rot90(rgb, k=round(rotation / 90)) if rotation else rgb


def _video_frames(frames: np.ndarray, lossless: bool) -> Iterator[Any]:
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
