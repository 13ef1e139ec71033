"""Names what was seen in a clip, in the data set's words: shapes, colors, motions, places."""

from dataclasses import dataclass

import numpy as np

from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    CAMERAS,
    COLORS,
    IN_PLACE,
    MOTIONS,
    SHAPES,
    SIZES,
    Canvas,
    Color,
)
from vidlab.metrics.shapes.grade import POSITIONS, position_score, size_score
from vidlab.metrics.shapes.motion import STEADY, UNSTEADY, growth, motion_score, speed_score
from vidlab.metrics.shapes.parsed_scene import Floats, ParsedScene, SeenObject


@dataclass(frozen=True)
class ObjectReading:
    """The best name of each factor of an object; "" where none applies."""

    shape: str
    color: str
    size: str
    motion: str
    speed: str
    position: str

    def __str__(self) -> str:
        words = (self.size, self.color, self.shape, self.motion, self.speed, self.position)
        return " ".join(word for word in words if word and word not in ("varying", "none"))


@dataclass(frozen=True)
class Reading:
    """The best name of each factor of a clip; objects from left to right in the first frame."""

    objects: tuple[ObjectReading, ...]
    background: str
    background_colors: tuple[str, ...]
    camera: str

    def __str__(self) -> str:
        objects = "; ".join(map(str, self.objects)) or "no object"
        return f"{objects}; {self.background} {' and '.join(self.background_colors)}; camera {self.camera}"


def read(seen: ParsedScene) -> Reading:
    """The most fitting names for what was seen."""
    background = seen.background
    objects = sorted(seen.objects, key=lambda found: float(found.x[0]))
    return Reading(
        objects=tuple(read_object(found, seen.canvas) for found in objects),
        background=max(background.patterns, key=lambda name: background.patterns[name]),
        background_colors=tuple(nearest(color, BACKGROUND_COLORS) for color in background.colors),
        camera=max(CAMERAS, key=lambda name: background.cameras[name]),
    )


def read_object(found: SeenObject, canvas: Canvas) -> ObjectReading:
    """The most fitting names for one object."""
    shape = max(SHAPES, key=lambda name: found.shapes[name])
    motion = max(MOTIONS, key=lambda name: motion_score(found, shape, name, canvas))
    rests = motion in IN_PLACE
    varies = float(np.ptp(growth(found))) > (STEADY + UNSTEADY) / 2
    return ObjectReading(
        shape=shape,
        color=nearest(found.color, COLORS),
        size="varying" if varies else max(SIZES, key=lambda name: size_score(found, name)),
        motion=motion,
        speed="none" if rests else max(("slow", "fast"), key=lambda name: speed_score(found, name)),
        position=max(POSITIONS, key=lambda name: position_score(found, name, canvas)) if rests else "",
    )


def nearest(color: Floats, palette: dict[str, Color]) -> str:
    """The name of the nearest color."""
    return min(palette, key=lambda name: float(np.linalg.norm(color - np.array(palette[name]))))
