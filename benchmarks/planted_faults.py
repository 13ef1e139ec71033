"""Videos of moving shapes with planted faults, and which of them a recipe removes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from vidlab.curation.engine.records import SourceVideo
from vidlab.data.moving_shapes.source import MovingShapes, RenderedClip
from vidlab.data.video import encode

FPS, FRAMES, SIDE = 8, 40, 128
Frames = np.ndarray


def scenes(seed: int) -> MovingShapes:
    return MovingShapes(FRAMES, SIDE, SIDE, FPS, "rich", seed=seed)


def still(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    return np.repeat(frames[:1], FRAMES, axis=0)


def cut(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    return np.concatenate([frames, other])


def shaking(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    moves = rng.integers(-SIDE // 3, SIDE // 3, (len(frames), 2))
    return np.stack([np.roll(frame, tuple(move), axis=(0, 1)) for frame, move in zip(frames, moves, strict=True)])


def text(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    made = frames.copy()
    made[:, SIDE - 22 : SIDE - 3] //= 4
    words = "".join(chr(c) for c in rng.integers(ord("A"), ord("Z"), 8))
    for frame in made:
        cv2.putText(frame, words, (8, SIDE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
    return made


def noise(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    return np.clip(frames + rng.normal(0, 50, frames.shape), 0, 255).astype(np.uint8)


def blur(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in frames])


def good(frames: Frames, other: Frames, rng: np.random.Generator) -> Frames:
    return frames


Fault = Callable[[Frames, Frames, np.random.Generator], Frames]
FAULTS: dict[str, Fault] = {one.__name__: one for one in (still, cut, shaking, text, noise, blur)}


def moves(clip: RenderedClip) -> bool:
    """Whether something of a clip moves; a rendered scene may stand still before a fixed camera."""
    return clip.factors.camera != "fixed" or any(one.motion != "still" for one in clip.factors.objects)


def moving(source: MovingShapes) -> Iterator[Frames]:
    """The frames of clips in which something moves, in order."""
    return (clip.frames for clip in map(source.render, count()) if moves(clip))


def make(folder: Path, goods: int, each: int, seed: int, kinds: Iterable[str] = FAULTS) -> Iterator[SourceVideo]:
    """``goods`` videos without a fault and ``each`` of every kind; a name begins with its fault."""
    clips, number = moving(scenes(seed)), 0
    folder.mkdir(parents=True, exist_ok=True)
    for fault, wanted in ((good, goods), *((FAULTS[kind], each) for kind in kinds)):
        for at in range(wanted):
            first, other = next(clips), next(clips)
            frames = fault(first, other, np.random.default_rng(seed * 10_000 + number))
            number += 2
            file = folder / f"{fault.__name__}-{at:03d}.mp4"
            file.write_bytes(encode(frames, FPS))
            yield SourceVideo(file.name, str(file), captions=("shapes",), state=str(seed))
