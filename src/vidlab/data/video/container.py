"""Opens video files safely: any untrusted file, read alone, within limits, with errors that name it."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.logging

from vidlab.errors import CorruptClipError, UserError

# The containers that are read. Playlists (HLS, DASH, ffconcat, SDP, numbered pictures) are among those that are not:
# they name other files.
CONTAINERS = (
    *("mov", "matroska", "avi", "gif", "apng", "flv", "mpegts", "mpeg", "ogg", "asf", "mxf", "nut", "ivf", "dv", "rm"),
    *("h264", "hevc", "obu", "m4v", "mpegvideo", "yuv4mpegpipe"),
)
# A frame longer than this against its width would be scaled to one that no memory holds.
LONGEST = 32

USUAL = "mp4, mov, mkv, webm, avi, gif"

# libav prints decoder complaints to stderr; what matters of them is raised as CorruptClipError.
av.logging.set_level(None)


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one clip may take. Headers are held against it before memory is taken.

    Args:
        max_megapixels: millions of pixels of a frame, as stored and as shown.
        max_decoded_mb: megabytes (1e6 bytes) of the frames that are decoded at a time, 3 bytes a pixel.

    Raises:
        UserError: a limit that is not positive.
    """

    max_megapixels: float = 64
    max_decoded_mb: float = 4000

    def __post_init__(self) -> None:
        for name, value in (("max_megapixels", self.max_megapixels), ("max_decoded_mb", self.max_decoded_mb)):
            if not value > 0:
                raise UserError(f"data.{name}={value}: it must be above 0")

    def check_frame(self, height: int, width: int) -> None:
        """Refuse frames that are too large, or too long.

        Raises:
            CorruptClipError: with the size and the limit.
        """
        if height * width > self.max_megapixels * 1e6:
            raise CorruptClipError(
                f"frames of {height} x {width} have {height * width / 1e6:.3g} megapixels, and max_megapixels="
                f"{self.max_megapixels:g} are allowed"
            )
        if max(height, width) > LONGEST * min(height, width):
            raise CorruptClipError(f"frames of {height} x {width}: more than {LONGEST} times as long as wide")

    def frames(self, height: int, width: int) -> int:
        """Frames of one size that there is room for."""
        return int(self.max_decoded_mb * 1e6) // (3 * height * width)

    def check_decoded(self, count: int, height: int, width: int) -> None:
        """Refuse more frames than there shall be memory for.

        Raises:
            CorruptClipError: with their size and the limit.
        """
        if count > self.frames(height, width):
            size = 3 * count * height * width / 1e6
            raise CorruptClipError(
                f"{count} frames of {height} x {width} take {size:.4g} MB decoded, and max_decoded_mb="
                f"{self.max_decoded_mb:g} are allowed"
            )


@contextmanager
def opened(source: Path | bytes | io.RawIOBase, name: str) -> Iterator[io.IOBase]:
    """The file of a video at its start; whatever fails inside becomes a CorruptClipError that names the clip.

    Names are never given to the decoder: it would take some for addresses (``take:2.mp4``) or patterns.
    """
    label = name or (str(source) if isinstance(source, Path) else "clip in memory")
    label = label.encode(errors="surrogateescape").decode(errors="replace")
    try:
        file = _file(source)
        with file:
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise CorruptClipError("the file is empty (0 bytes)")
            _check_avi_header(file, size)
            file.seek(0)
            yield file
    except CorruptClipError as error:
        raise CorruptClipError(f"{label}: {error}") from None
    except av.error.FFmpegError as error:
        raise CorruptClipError(f"{label}: not a readable video ({error.strerror})") from error
    # Headers that lie make the bindings fail in ways of their own: overflows, divisions by zero, text that is none.
    except Exception as error:
        raise CorruptClipError(f"{label}: not a readable video ({type(error).__name__}: {error})") from error


def _file(source: Path | bytes | io.RawIOBase) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        return source
    if not source.is_file():
        raise CorruptClipError("no such file")
    try:
        return source.open("rb", buffering=0)
    except OSError as error:
        raise CorruptClipError(f"it cannot be opened ({error.strerror})") from None


# An AVI's header has a few dozen chunks.
MOST_HEADER_CHUNKS = 1000


def _check_avi_header(file: Any, size: int) -> None:
    """Refuse an AVI whose header has a chunk longer than the file: libav takes memory for it before it reads.

    The list of frames may be longer, as in a recording that was cut off.
    """
    file.seek(0)
    if not re.fullmatch(rb"RIFF.{4}AVI.", file.read(12), re.DOTALL):
        return
    place = 12
    for _ in range(MOST_HEADER_CHUNKS):
        file.seek(place)
        head = file.read(12)
        if len(head) < 12 or head[8:] == b"movi":
            return
        length = int.from_bytes(head[4:8], "little")
        if length > size:
            raise CorruptClipError(f"damaged: its header says {length} bytes where the file has {size}")
        place += 12 if head[:4] == b"LIST" else 8 + length + length % 2


class _Nameless:
    """A file without its name, which libav would guess the kind of file from."""

    def __init__(self, file: Any) -> None:
        self.read, self.seek = file.read, file.seek

    def tell(self) -> int:
        """The present place."""
        return int(self.seek(0, io.SEEK_CUR))


@contextmanager
def video_stream(file: io.IOBase, limits: DecodeLimits) -> Iterator[tuple[Any, Any]]:
    """The container in a file, which is read from its start, and its first video stream, ready to decode.

    Raises:
        CorruptClipError: there is none.
    """
    file.seek(0)
    # decoders hold the sizes they meet against this one, before they take memory; they round sides up to blocks
    largest = {"max_pixels": str(int(limits.max_megapixels * 1.05e6) + 64 * 64)}
    options = {**largest, "format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
    with _container(file, options) as container:
        # packets without a presentation time keep none: what libav makes up is no order to seek by
        container.flags &= ~av.container.core.Flags.gen_pts.value
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise CorruptClipError(f"no video stream, only {', '.join(kinds)}")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise CorruptClipError("the codec of its video stream is unknown")
        context.thread_count = 1
        context.options = largest
        limits.check_frame(context.height, context.width)
        try:
            yield container, stream
        except av.error.ArgumentError:
            if context.height * context.width:
                raise
            raise CorruptClipError(
                f"its frames have more than max_megapixels={limits.max_megapixels:g} megapixels, or no size"
            ) from None


def _container(file: io.IOBase, options: dict[str, str]) -> Any:
    try:
        # names and titles that are not UTF-8 are nothing to fail for
        return av.open(_Nameless(file), options=options, metadata_errors="replace", io_open=_refuse)
    except (av.error.ArgumentError, av.error.InvalidDataError):
        raise CorruptClipError(
            f"not a readable video: damaged, or of a kind that is not read (read are {USUAL} and other containers; "
            "playlists, which name other files, are not)"
        ) from None


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    raise CorruptClipError(f"it names another file ({url}), and no other is opened")
