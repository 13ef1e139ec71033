"""The wordings captions are made of. Present tense, third person, with the matching "-ing" form."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb as "a square ___" and as "a square ___" without a finite form ("moves", "moving")."""

    finite: str
    participle: str


def _verbs(*pairs: str) -> tuple[Verb, ...]:
    return tuple(Verb(*pair.split("/")) for pair in pairs)


SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized", "medium"),
    "large": ("large", "big", "huge"),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle", "triangular shape"),
    "cross": ("cross", "plus sign"),
}
COLOR_WORDS = {
    "grey": ("grey", "gray"),
    "navy": ("navy", "dark blue"),
    "dark green": ("dark green", "deep green"),
}

# Verbs that say nothing of speed, that suit slow motion without naming it, and that name a speed by
# themselves.
MOVES = _verbs(
    "moves/moving",
    "slides/sliding",
    "glides/gliding",
    "travels/travelling",
    "goes/going",
    "heads/heading",
    "shifts/shifting",
    "makes its way/making its way",
)
SUITS_SLOW = _verbs("drifts/drifting", "floats/floating")
NAMES_SLOW = _verbs("creeps/creeping", "inches/inching", "crawls/crawling")
NAMES_FAST = _verbs("races/racing", "darts/darting", "rushes/rushing", "speeds/speeding", "dashes/dashing")
ADVERBS = {
    "slow": ("slowly", "gently", "unhurriedly", "at a slow pace"),
    "fast": ("quickly", "swiftly", "rapidly", "at high speed", "fast"),
}

BEFORE_VERB = ("slowly", "gently", "quickly", "swiftly", "rapidly")

TOWARDS = {
    **{name: (name, f"to the {name}", f"{name}wards", f"towards the {name}") for name in ("left", "right")},
    "up": ("up", "upwards", "towards the top", "straight up"),
    "down": ("down", "downwards", "towards the bottom", "straight down"),
    **{
        f"{row} {column}": (
            f"to the {row} {column}",
            f"towards the {row} {column}",
            f"{way} and to the {column}",
            f"diagonally {way} and {column}",
            f"towards the {edge} {column}",
        )
        for row, way, edge in (("upper", "up", "top"), ("lower", "down", "bottom"))
        for column in ("left", "right")
    },
}

MOTION_VERBS = {
    "still": _verbs(
        "stays still/staying still",
        "does not move/not moving",
        "rests/resting",
        "sits still/sitting still",
        "is stationary/remaining stationary",
        "stands still/standing still",
        "remains in place/remaining in place",
        "holds still/holding still",
        "is motionless/motionless",
        "stays put/staying put",
        "stays where it is/staying where it is",
        "keeps still/keeping still",
        "sits motionless/sitting motionless",
    ),
    "rotating": _verbs(
        "rotates/rotating",
        "spins/spinning",
        "turns in place/turning in place",
        "spins in place/spinning in place",
        "rotates on the spot/rotating on the spot",
        "turns around its centre/turning around its centre",
        "revolves in place/revolving in place",
        "spins on the spot/spinning on the spot",
        "keeps rotating/rotating steadily",
        "twirls in place/twirling in place",
        "turns on its axis/turning on its axis",
        "spins around/spinning around",
    ),
    "growing": _verbs(
        "grows/growing",
        "gets bigger/getting bigger",
        "expands/expanding",
        "becomes larger/becoming larger",
        "grows in size/growing in size",
        "gets larger/getting larger",
        "swells/swelling",
        "increases in size/increasing in size",
        "enlarges/enlarging",
        "keeps growing/growing steadily",
        "grows bigger and bigger/growing bigger and bigger",
        "inflates/inflating",
    ),
    "shrinking": _verbs(
        "shrinks/shrinking",
        "gets smaller/getting smaller",
        "contracts/contracting",
        "becomes smaller/becoming smaller",
        "shrinks in size/shrinking in size",
        "dwindles/dwindling",
        "diminishes/diminishing",
        "decreases in size/decreasing in size",
        "shrinks down/shrinking down",
        "keeps shrinking/shrinking steadily",
        "gets smaller and smaller/getting smaller and smaller",
        "deflates/deflating",
    ),
    "bouncing": _verbs(
        "bounces/bouncing",
        "bounces off the edge/bouncing off the edge",
        "bounces off the edge of the frame/bouncing off the edge of the frame",
        "hits the edge and bounces back/hitting the edge and bouncing back",
        "bounces back from the side/bouncing back from the side",
        "rebounds off the edge/rebounding off the edge",
        "runs into the edge and bounces back/running into the edge and bouncing back",
        "bounces off the wall/bouncing off the wall",
        "ricochets off the edge/ricocheting off the edge",
        "hits the wall and turns back/hitting the wall and turning back",
        "springs back from the edge/springing back from the edge",
        "bounces off the border/bouncing off the border",
    ),
}

POSITIONS = {
    "centre": ("in the centre", "in the middle", "at the centre of the frame", "in the middle of the frame"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    **{
        f"{row} {column}": (
            f"in the {row} {column}",
            f"in the {edge} {column} corner",
            f"at the {edge} {column}",
        )
        for row, edge in (("upper", "top"), ("lower", "bottom"))
        for column in ("left", "right")
    },
}

RELATIONS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "beneath", "lower than"),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PASSES = _verbs(
    "passes in front of/passing in front of",
    "moves in front of/moving in front of",
    "slides over/sliding over",
    "crosses in front of/crossing in front of",
    "glides across/gliding across",
    "passes over/passing over",
    "briefly covers/briefly covering",
    "travels in front of/travelling in front of",
    "moves across/moving across",
    "partly hides/partly hiding",
    "slides in front of/sliding in front of",
    "passes before/passing before",
)

PLAIN = ("on a {0} background", "against a {0} background", "over a {0} background", "on {0}")
PLAIN_UNCOLORED = ("on a plain background", "over a plain background", "against a plain background")
TEXTURED = {
    "striped": ("a striped background", "stripes", "a striped backdrop"),
    "checkered": ("a checkered background", "a checkerboard", "a checkered pattern"),
    "gradient": ("a gradient", "a smoothly shaded background", "a gradient background"),
}
TEXTURED_COLORED = {
    "striped": ("{0} and {1} stripes", "a striped {0} and {1} background"),
    "checkered": ("a {0} and {1} checkerboard", "a checkered {0} and {1} background"),
    "gradient": ("a gradient from {0} to {1}", "a background that fades from {0} to {1}"),
}
ON = ("over", "on", "against")

CAMERA_PAN = ("the camera pans {0}", "the camera moves {0}", "the view pans {0}", "the shot pans {0}")
CAMERA_ZOOM = {
    "zoom in": ("the camera zooms in", "the view zooms in", "the camera moves closer"),
    "zoom out": ("the camera zooms out", "the view zooms out", "the camera pulls back"),
}
CAMERA_ON = {
    "zoom in": ("the camera zooms in on", "the camera moves closer to", "the view closes in on"),
    "zoom out": ("the camera zooms out from", "the camera pulls back from", "the view zooms out from"),
}
ON_SCREEN = ("in the frame", "in the view", "on screen")
OPENERS = ("a clip of", "a video of", "footage of", "an animation of", "a short video showing")
