"""Converts decoded frames to those shown: upright, with square pixels, 8-bit RGB over white."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter

from vidlab.data.video.container import DecodeLimits
from vidlab.errors import CorruptClipError

# Frames that room is made for at once; a file may declare any number.
MOST_EXPECTED = 256

# A ratio of pixel sides this near to 1 is one: encoders declare 1280:1281 to make up for a rounded width.
SQUARE = 0.01
LONGEST_PIXEL = 16

# Of a display matrix, off the axes against on them: about one degree.
SLANT = 0.02


class Orientation(NamedTuple):
    """How a stored frame is turned to be upright: first transposed, then flipped."""

    transposed: bool = False
    rows_flipped: bool = False
    columns_flipped: bool = False

    def applied(self, rgb: np.ndarray) -> np.ndarray:
        """The upright view of a frame (H, W, 3)."""
        if self.transposed:
            rgb = rgb.swapaxes(0, 1)
        return rgb[:: -1 if self.rows_flipped else 1, :: -1 if self.columns_flipped else 1]


UPRIGHT = Orientation()


def orientation_of(matrix: bytes) -> Orientation:
    """What a display matrix says, libavutil's nine native int32: x' = a x + c y, y' = b x + d y, y down.

    Raises:
        CorruptClipError: it turns or shears by no quarter turn.
    """
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, np.int32)[:5])
    if not (a or b or c or d):
        return UPRIGHT  # some cameras write zeros for none
    if a and d and max(abs(b), abs(c)) <= SLANT * min(abs(a), abs(d)):
        return Orientation(False, d < 0, a < 0)
    if b and c and max(abs(a), abs(d)) <= SLANT * min(abs(b), abs(c)):
        return Orientation(True, b < 0, c < 0)
    degrees = np.degrees(np.arctan2(b, a))
    raise CorruptClipError(f"it is to be shown turned by {degrees:.0f} degrees, and only quarter turns are read")


def shown_size(height: int, width: int, pixel: Fraction | None) -> tuple[int, int]:
    """(height, width) with square pixels: the side on which the stored ones are longer is stretched.

    Args:
        height: as stored.
        width: as stored.
        pixel: width of a pixel by its height; None where nothing is declared.

    Raises:
        CorruptClipError: a ratio beyond ``LONGEST_PIXEL``.
    """
    if not pixel or abs(pixel - 1) <= SQUARE:
        return height, width
    if not 1 / LONGEST_PIXEL <= pixel <= LONGEST_PIXEL:
        raise CorruptClipError(f"pixels of {pixel.numerator}:{pixel.denominator} are declared, which none are")
    return (height, round(width * pixel)) if pixel > 1 else (round(height / pixel), width)


class FrameConverter:
    """Turns the frames of one stream into upright RGB.

    Args:
        stream: of PyAV.
        limits: that shown frames must keep to.
    """

    def __init__(self, stream: Any, limits: DecodeLimits) -> None:
        self._pixel = stream.sample_aspect_ratio
        # a GIF's decoder has its transparent parts white already
        self._opaque = stream.codec_context.name == "gif"
        self._limits = limits
        self._reformatter = VideoReformatter()
        self._formats: dict[str, bool] = {}
        self._orientations: dict[float, Orientation] = {}
        self._stored = self._shown = (0, 0)

    def shape(self, frame: Any) -> tuple[int, int]:
        """(height, width) as a frame is shown."""
        height, width = self._size(frame)
        return (width, height) if self._orientation(frame).transposed else (height, width)

    def transparent(self, frame: Any) -> bool:
        """Whether a frame may be transparent."""
        name = frame.format.name
        if name not in self._formats:
            alpha = any(component.is_alpha for component in frame.format.components)
            self._formats[name] = alpha and not self._opaque
        return self._formats[name]

    def rgb(self, frame: Any) -> np.ndarray:
        """One decoded frame as uint8 (H, W, 3), where possible a view of the frame."""
        name, size = frame.format.name, self._size(frame)
        if self.transparent(frame):
            rgb = over_white(self._reformatted(frame, name, "rgba", size))
        elif name == "gbrp" and size == self._stored:
            rgb = frame.to_ndarray()  # RGB needs no color conversion: exact, and half the time
        else:
            rgb = self._reformatted(frame, name, "rgb24", size)
        orientation = self._orientation(frame)
        return rgb if orientation is UPRIGHT else orientation.applied(rgb)

    def reduced(self, frame: Any, height: int, width: int) -> np.ndarray:
        """One decoded frame as uint8 (height, width, 3), averaged over the area that a pixel covers.

        It is scaled before it is turned into RGB, which is several times faster than after.
        """
        name = frame.format.name
        orientation = self._orientation(frame)
        if (height, width) == self.shape(frame) or self.transparent(frame):
            full = np.ascontiguousarray(self.rgb(frame))
            return full if full.shape[:2] == (height, width) else _area(full, height, width)
        wanted = (width, height) if orientation.transposed else (height, width)
        rgb = self._reformatted(frame, name, "rgb24", wanted, Interpolation.AREA)
        return orientation.applied(rgb) if orientation is not UPRIGHT else rgb

    def _size(self, frame: Any) -> tuple[int, int]:
        stored = frame.height, frame.width
        if stored != self._stored:
            shown = shown_size(*stored, self._pixel)
            self._limits.check_frame(*shown)
            self._stored, self._shown = stored, shown
        return self._shown

    def _orientation(self, frame: Any) -> Orientation:
        # the bindings' side data holds its frame in a cycle, so that its memory is not used again: read once for a turn
        turn = frame.rotation
        if turn not in self._orientations:
            matrices = [side for side in frame.side_data if side.type is Type.DISPLAYMATRIX]
            self._orientations[turn] = orientation_of(bytes(matrices[0])) if matrices else UPRIGHT
        return self._orientations[turn]

    def _reformatted(
        self,
        frame: Any,
        name: str,
        kind: str,
        size: tuple[int, int],
        interpolation: Interpolation = Interpolation.BICUBIC,
    ) -> np.ndarray:
        height, width = size
        if size != self._stored:
            frame = self._reformatter.reformat(
                frame, width, height, format=kind, interpolation=interpolation, threads=1
            )
        elif name != kind:
            frame = self._reformatter.reformat(frame, format=kind, threads=1)
        (plane,) = frame.planes
        channels = len(kind.rstrip("24"))
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return lines[:height, : channels * width].reshape(height, width, channels)


def _area(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    import cv2

    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) with alpha as uint8 (H, W, 3) as seen on white paper, rounded."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return rgba[..., :3]
    mixed = rgba[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((mixed + 127) // 255).astype(np.uint8)


class FrameStore:
    """Decoded frames by number, copied once, into one array that grows.

    Args:
        stream: of PyAV.
        expected: frames there will be, where that is known.
        limits: that they must keep to.
    """

    def __init__(self, stream: Any, expected: int, limits: DecodeLimits) -> None:
        self.places: dict[int, int] = {}
        self._expected = min(max(expected, 1), MOST_EXPECTED)
        self._array = np.empty((0, 0, 0, 3), np.uint8)
        self._converter = FrameConverter(stream, limits)
        self._limits = limits

    def add(self, index: int, frame: Any) -> None:
        """Keep a frame of PyAV as upright RGB.

        Raises:
            CorruptClipError: too large, too many, or of another size than those before.
        """
        if index in self.places:
            return
        used = len(self.places)
        if used == 0:
            shape = self._converter.shape(frame)
            self._limits.check_decoded(1, *shape)
            self._array = np.empty((min(self._expected, self._limits.frames(*shape)), *shape, 3), np.uint8)
        rgb = self._converter.rgb(frame)
        if rgb.shape != self._array.shape[1:]:
            raise CorruptClipError(f"frame {index} has another size than those before it")
        if used == len(self._array):
            self._grow(used)
        self._array[used] = rgb
        self.places[index] = used

    def _grow(self, used: int) -> None:
        height, width = self._array.shape[1:3]
        self._limits.check_decoded(used + 1, height, width)
        larger = np.empty((min(2 * used, self._limits.frames(height, width)), height, width, 3), np.uint8)
        larger[:used] = self._array
        self._array = larger

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, which must be there."""
        places = [self.places[index] for index in indices]
        if places == list(range(len(places))):
            return self._array[: len(places)]
        return self._array[places]
