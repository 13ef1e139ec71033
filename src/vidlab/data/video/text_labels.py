"""Draws text labels into pictures, in any script for which this machine has a font."""

import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
FONT_SIZE = 14
NO_FONT = (
    "No font here shows every character of the labels in pictures: some are written by their code points, such as "
    "U+732B. A font that the system knows, such as Noto Sans CJK, would show them."
)
ABSENT = "\uffff"  # never a character: what a font draws for it, it draws for all it has not


class Label:
    """A text that can be drawn: the font that shows all of it, and the text as that font can show it.

    Pillow's own font has Latin letters. Others are looked for, in this order, only when a text needs them: DejaVu Sans
    (Cyrillic, Greek, Arabic, Hebrew and more), where matplotlib brings it, and the fonts of the system. Characters that
    no font has are shown by their code points, such as ``U+732B``, which a warning says once.

    Args:
        text: characters that are not seen, line ends among them, become spaces or go.
    """

    def __init__(self, text: str) -> None:
        visible = _visible(text)
        self.font, missing = _best_font(frozenset(visible) - {" "})
        self.text = "".join(f" U+{ord(char):04X} " if char in missing else char for char in visible).strip()
        if missing:  # Python shows one text once
            warnings.warn(NO_FONT, stacklevel=2)

    def lines(self, width: int) -> list[str]:
        """Break at spaces into lines of at most ``width`` pixels; a longer word is broken where it must be."""
        lines = [""]
        for word in self.text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.font.getlength(longer) > width:
                lines.append("")
                longer = word
            *full, lines[-1] = self._broken(longer, width)
            lines[-1:-1] = full
        return lines

    def draw(self, on: ImageDraw.ImageDraw, place: tuple[int, int], line: str, ink: tuple[int, int, int]) -> None:
        """Draw a line."""
        on.text(place, line, fill=ink, font=self.font)

    def _broken(self, line: str, width: int) -> list[str]:
        if self.font.getlength(line) <= width:
            return [line]
        parts, start = [], 0
        for end in range(1, len(line)):
            fits = self.font.getlength(line[start : end + 1]) <= width
            if not fits and not unicodedata.combining(line[end]):
                parts.append(line[start:end])
                start = end
        return [*parts, line[start:]]


def _visible(text: str) -> str:
    spaced = " ".join(text.split())
    kept = (char for char in spaced if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return "".join(char for char in kept if not 0xFE00 <= ord(char) <= 0xFE0F)  # variants of the sign before


@lru_cache(maxsize=1024)
def _best_font(characters: frozenset[str]) -> tuple[Font, frozenset[str]]:
    """The first font that has all characters, otherwise that which has most; and those it lacks."""
    best: tuple[Font, frozenset[str]] | None = None
    for font in _fonts():
        missing = frozenset(char for char in characters if not _has(font, char))
        if best is None or len(missing) < len(best[1]):
            best = font, missing
        if not missing:
            break
    assert best is not None
    return best


def _fonts() -> Iterator[Font]:
    """Fonts in the order in which they are tried."""
    yield _default_font()
    paths = [_of_matplotlib()]
    yield from (font for path in paths if path and (font := _opened(path)))
    yield from (font for path in _of_the_system() if (font := _opened(path)))


@cache
def _default_font() -> Font:
    return ImageFont.load_default(FONT_SIZE)


def _of_matplotlib() -> Path | None:
    found = find_spec("matplotlib")
    path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    return path if path and path.is_file() else None


@cache
def _of_the_system() -> tuple[Path, ...]:
    if find_spec("matplotlib") is None:
        return ()
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(map(Path, findSystemFonts()), key=lambda path: (path.name, str(path))))


@cache
def _opened(path: Path) -> Font | None:
    """A font; None for files that hold none of this size, such as colored pictures."""
    try:
        return ImageFont.truetype(str(path), FONT_SIZE)
    except (OSError, ValueError):
        return None


@cache
def _has(font: Font, char: str) -> bool:
    return _drawn(font, char) != _drawn(font, ABSENT)


def _drawn(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    canvas = Image.new("L", (3 * FONT_SIZE, 3 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((FONT_SIZE, FONT_SIZE // 2), char, fill=255, font=font)
    return canvas.size, canvas.tobytes()
