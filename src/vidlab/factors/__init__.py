"""The true factors of rendered clips: what they show, frame by frame."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectFactors:
    """The true state of one object of a rendered clip, as it is seen on screen.

    Args:
        shape: name of the shape.
        color: name of the color.
        size: "small", "medium" or "large", or "varying" when the diameter changes during the clip.
        motion: a direction ("right", "upper right", "up", ...), or "still", "bouncing", "rotating",
            "growing", "shrinking".
        speed: "slow" or "fast" for an object that changes place, else "none".
        position: where an object that keeps its place is ("centre", "left", "upper left", ...); "" for one
            that moves, or whose place is between two names.
        x: the center in each frame, growing to the right, in [0, 1] over the frame's width.
        y: the center in each frame, growing downwards, in [0, 1] over the frame's height.
        diameter: of the disc of the same area in each frame, as a fraction of the frame's short side.
        angle: clockwise turn in each frame, in radians; 0 is upright.
    """

    shape: str
    color: str
    size: str
    motion: str
    speed: str
    position: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    diameter: tuple[float, ...]
    angle: tuple[float, ...]


@dataclass(frozen=True)
class Factors:
    """The true factors of a rendered clip, kept in the index and used to grade generated videos.

    Args:
        objects: back to front.
        background: pattern of the background ("plain", "striped", "checkered", "gradient").
        background_colors: one color for a plain background, two otherwise.
        camera: "fixed", "pan left", "pan right", "pan up", "pan down", "zoom in" or "zoom out".
        occlusion: whether the front object visibly passes before the back one.
        relation: where the first object is in frame 0, seen from the second: "left of", "right of", "above",
            "below", or "" where that is unclear or there is one object.
        relation_frames: for how many frames, counted from the first, the relation holds.
        named: the factors the caption speaks of, such as ``("objects.0.color", "background")``. A caption
            never names what cannot be seen.
    """

    objects: tuple[ObjectFactors, ...]
    background: str
    background_colors: tuple[str, ...]
    camera: str
    occlusion: bool
    relation: str
    relation_frames: int
    named: tuple[str, ...]
