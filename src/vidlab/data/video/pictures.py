"""Reads picture files as they are shown: upright, 8-bit RGB over white."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from vidlab.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow reads by itself; for others it starts programs (EPS) or knows next to nothing of them.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")

# A picture longer than this against its width would be scaled to one that no memory holds.
LONGEST = 32


def read_picture(path: Path, max_megapixels: float = 128) -> UInt8[np.ndarray, "H W 3"]:
    """A picture as uint8 RGB (H, W, 3).

    It is turned as its EXIF orientation says. 16-bit gray keeps its grays (65535 is white), palettes, gray, 1-bit and
    CMYK become RGB, transparent parts are shown over white, and of an animation the first picture is taken.

    Args:
        path: a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM, JPEG 2000 or TGA file.
        max_megapixels: millions of pixels it may have; its header is held against it before memory is taken.

    Raises:
        DataError: naming the file, when it is missing, damaged, too large or has values without a known white.
    """
    from PIL import Image, UnidentifiedImageError

    if path.exists() and not path.is_file():
        raise DataError(f"{path}: this is a folder, a pipe or a device; give a picture file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the caller's
            with Image.open(path, formats=FORMATS) as picture:
                _check_size(picture.size, max_megapixels)
                return _as_rgb(picture)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than 178 megapixels, and max_megapixels={min(max_megapixels, 178):g} are allowed: make "
            "a smaller copy."
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path} cannot be read as a picture: damaged, or none of {', '.join(FORMATS)}. Save it as PNG or JPEG."
        ) from None
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except Exception as error:  # a damaged file makes Pillow raise errors of any type
        raise DataError(f"{path} cannot be read as a picture: {error or type(error).__name__}.") from error


def _check_size(size: tuple[int, int], max_megapixels: float) -> None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise DataError(
            f"has {width * height / 1e6:.4g} megapixels ({width} x {height}), and max_megapixels={max_megapixels:g} "
            "are allowed: make a smaller copy or raise it, up to 178."
        )
    if max(size) > LONGEST * min(size):
        raise DataError(f"is {width} x {height}: more than {LONGEST} times as long as wide cannot be used.")


def _as_rgb(picture: "Image") -> np.ndarray:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F":
        raise DataError("has floating-point values, of which nobody knows which is white: save it as PNG.")
    if upright.mode in SIXTEEN_BITS:
        return _eight_bits(np.asarray(upright))
    if upright.mode in TRANSPARENT or "transparency" in upright.info:
        shown = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return np.asarray(upright.convert("RGB"))


def _eight_bits(gray: np.ndarray) -> np.ndarray:
    """Gray of 16 bits as RGB of 8: 65535 / 257 is 255."""
    gray = gray.astype(np.int64)
    if gray.min() < 0 or gray.max() > 65535:
        raise DataError("has 32-bit values, of which nobody knows which is white: save it as PNG.")
    return np.repeat(((gray + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
