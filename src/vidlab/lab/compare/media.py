"""Videos of a comparison: the same prompts and noise for every configuration, for the page and the contact sheet."""

import base64
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vidlab.data.video import encode, read_frames
from vidlab.data.video.contact_sheets import upscale_nearest, write_png
from vidlab.data.video.text_labels import Label
from vidlab.errors import CorruptClipError
from vidlab.lab.compare.comparison import ConfigurationRow
from vidlab.lab.compare.reading.runs import PREVIEWS

MOST_PROMPTS = 8
MOST_CLIPS = 200  # of the page: with many configurations, fewer prompts
MOST_BYTES = 24_000_000
SHOWN_SIDE = 160
FPS = 8.0
GAP, LINE, PAPER, INK, FAINT = 6, 18, (255, 255, 255), (20, 20, 20), (110, 110, 110)
SHEET_PROMPTS = 4
SEVERAL = "previews, several prompts in one"
THUMB = 96


@dataclass(frozen=True)
class Clip:
    """A video of one configuration and prompt.

    Args:
        configuration: its place among the rows.
        prompt: its place among the prompts.
        frames: (T, H, W, 3) uint8.
        mp4: as the page embeds it.
    """

    configuration: int
    prompt: int
    frames: np.ndarray
    mp4: bytes

    @property
    def data_uri(self) -> str:
        """For ``src``."""
        return f"data:video/mp4;base64,{base64.b64encode(self.mp4).decode()}"


@dataclass(frozen=True)
class Gallery:
    """The videos of a page.

    Args:
        prompts: captions, or what stands for all of them.
        clips: of the configurations that have them.
        seeds: of the runs that made them, by the configuration's place.
        notes: what was left out, for a person.
    """

    prompts: tuple[str, ...] = ()
    clips: tuple[Clip, ...] = ()
    seeds: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, prompt: int) -> dict[int, Clip]:
        """The clips of a prompt by configuration."""
        return {clip.configuration: clip for clip in self.clips if clip.prompt == prompt}


def make_gallery(rows: Sequence[ConfigurationRow]) -> Gallery:
    """Choose the prompts that most configurations have videos of, and read these.

    Of each configuration the run with its lowest seed is shown. Clips are enlarged by repeating pixels, and encoded for
    browsers.
    """
    runs = [next((run for _, run in sorted(row.runs.items()) if run.videos), None) for row in rows]
    seeds = tuple(next((seed for seed, run in sorted(row.runs.items()) if run.videos), None) for row in rows)
    counts: dict[str, int] = {}
    for run in runs:
        for key in run.videos if run else ():
            counts[key] = counts.get(key, 0) + 1
    most = max(counts.values(), default=0)
    shared = [key for key, count in counts.items() if count == most]
    keys = shared[: max(1, min(MOST_PROMPTS, MOST_CLIPS // len(rows)))]
    captions = {key: text for run in runs if run for key, text in run.captions.items()}
    clips: list[Clip] = []
    notes, size = [], 0
    if len(keys) < len(shared):
        notes.append(f"{len(keys)} of {len(shared)} prompts are shown, so that the page stays small.")
    for prompt, key in enumerate(keys):
        made = [_clip(run.videos[key], place, prompt) for place, run in enumerate(runs) if run and key in run.videos]
        size += sum(len(clip.mp4) for clip in made if clip)
        if prompt and size > MOST_BYTES:
            keys = keys[:prompt]
            notes.append("Further prompts are left out, so that the page stays small.")
            break
        clips += [clip for clip in made if clip]
    told = tuple(SEVERAL if key == PREVIEWS else captions.get(key, key) for key in keys)
    return Gallery(told if clips else (), tuple(clips), seeds, tuple(notes))


def _clip(path: Path, configuration: int, prompt: int) -> Clip | None:
    try:
        frames = read_frames(path)
    except (CorruptClipError, OSError):
        return None
    return Clip(configuration, prompt, frames, encode(upscale_nearest(frames, SHOWN_SIDE), FPS))


def write_sheet(path: Path, rows: Sequence[ConfigurationRow], gallery: Gallery) -> Path | None:
    """A picture with a row for each configuration and a column for each prompt: three frames of every video.

    Returns:
        None where there are no videos.
    """
    if not gallery.clips:
        return None
    columns = range(min(SHEET_PROMPTS, len(gallery.prompts)))
    strips = {
        (clip.configuration, clip.prompt): _strip(clip.frames, gallery.prompts[clip.prompt] == SEVERAL)
        for clip in gallery.clips
        if clip.prompt in columns
    }
    height = max(strip.shape[0] for strip in strips.values())
    widths = [max(s.shape[1] for (_, prompt), s in strips.items() if prompt == column) for column in columns]
    heads = [Label(gallery.prompts[column]).lines(widths[column])[:3] for column in columns]
    names = [textwrap.wrap(row.name, 24)[:5] or [""] for row in rows]
    left, top = 190, LINE * max(map(len, heads)) + 2 * GAP
    sheet = Image.new("RGB", (left + sum(widths) + GAP * (len(widths) + 1), top + len(rows) * (height + GAP)), PAPER)
    draw, x = ImageDraw.Draw(sheet), left + GAP
    for column, width in zip(columns, widths, strict=True):
        label = Label(gallery.prompts[column])
        for number, line in enumerate(heads[column]):
            label.draw(draw, (x, GAP + number * LINE), line, FAINT)
        for place in range(len(rows)):
            if (place, column) in strips:
                sheet.paste(Image.fromarray(strips[place, column]), (x, top + place * (height + GAP)))
        x += width + GAP
    for place, lines in enumerate(names):
        for number, line in enumerate(lines):
            Label(line).draw(draw, (GAP, top + place * (height + GAP) + number * LINE), line, INK)
    return write_png(path, np.asarray(sheet))


def _strip(frames: np.ndarray, several: bool) -> np.ndarray:
    """The first, the middle and the last frame side by side; of a grid of several videos, the last alone."""
    count = len(frames)
    shown = frames[-1:] if several else frames[[0, count // 2, count - 1]]
    side = 3 * THUMB if several else THUMB
    every = max(1, min(shown.shape[1:3]) // side)  # of pixels that the video's maker has repeated
    return np.concatenate(list(upscale_nearest(shown[:, ::every, ::every], side)), axis=1)
