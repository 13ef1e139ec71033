"""Short prompts of moving-shapes clips, as people type them, and what they name: "red square moving left"."""

from random import Random

from vidlab.data.moving_shapes.captions import Caption
from vidlab.data.moving_shapes.scene import DIRECTIONS
from vidlab.factors import Factors

NAMES_MOTION = 0.5
DOING = {"still": "standing still", "bouncing": "bouncing"}


def short_prompt(rng: Random, factors: Factors) -> Caption:
    """Color and shape of each object, and of some what it does; everything else is left to the refiner."""
    texts, named = [], []
    for index, seen in enumerate(factors.objects):
        text = f"{seen.color} {seen.shape}"
        named += [f"objects.{index}.color", f"objects.{index}.shape"]
        if seen.motion and rng.random() < NAMES_MOTION:
            doing = f"moving {seen.motion}" if seen.motion in DIRECTIONS else DOING.get(seen.motion, seen.motion)
            text = f"{text} {doing}"
            named.append(f"objects.{index}.motion")
        texts.append(text)
    return Caption(" and ".join(texts), tuple(sorted(named)))
