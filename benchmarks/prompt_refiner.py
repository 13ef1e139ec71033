"""Does a prompt refiner raise the judge's score of a trained model? Short prompts against their expansions.

    python benchmarks/prompt_refiner.py --checkpoint last --refiner refiners/... --prompts 64

Prompts are short ones of held-out clips of moving_shapes, graded on what the short prompt states and on nothing else.
Appends a row with the means to results/prompt_refiner.csv.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from record import record
from vidlab import load
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.short_prompts import short_prompt
from vidlab.factors import Factors
from vidlab.metrics.intervals import bootstrap_mean
from vidlab.metrics.shapes.grade import grade
from vidlab.metrics.shapes.parse import parse_scene
from vidlab.pipelines.generated import GeneratedVideo
from vidlab.randomness import seed_of
from vidlab.text.refiner.refiner import PromptRefiner

STATED = ("object_class", "color", "motion_direction")  # dimensions of what a short prompt can state


def held_out(count: int, difficulty: str, shape: tuple[int, int, int]) -> list[tuple[str, str, Factors]]:
    """Short prompts of held-out clips, each text once, with the clip's own caption and the factors that they state."""
    source, found = MovingShapes(*shape, difficulty=difficulty), {}
    for index in range(100 * count):
        clip = source.render(index, "val")
        prompt = short_prompt(Random(seed_of(0, "short prompt", f"val-{index:07d}")), clip.factors)
        found.setdefault(prompt.text, (prompt.text, clip.caption, replace(clip.factors, named=prompt.named)))
        if len(found) == count:
            break
    return list(found.values())


def scores(videos: Sequence[GeneratedVideo], wanted: Sequence[Factors], each: int) -> np.ndarray:
    """Of each prompt the mean over what it states, of all its videos; then each of ``STATED``, or NaN."""
    rows = []
    for place, factors in enumerate(wanted):
        graded = [
            grade(parse_scene(video.frames), factors).scores for video in videos[place * each : (place + 1) * each]
        ]
        stated = [[one.get(name, np.nan) for name in STATED] for one in graded]
        mean = np.nanmean(stated, axis=1).mean()
        with np.errstate(invalid="ignore"):
            rows.append([mean, *np.mean(stated, axis=0)])
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--refiner", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--videos", type=int, default=2, help="of each prompt")
    parser.add_argument("--difficulty", default="plain")
    options = parser.parse_args()
    pipe = load(options.checkpoint)
    chosen = held_out(options.prompts, options.difficulty, pipe.clip_shape)
    short, captions, wanted = ([one[part] for one in chosen] for part in range(3))
    refined = [one.refined for one in PromptRefiner.load(options.refiner, max_new_tokens=64).refine(short)]
    print(*(f"{a} -> {b}" for a, b in zip(short[:8], refined, strict=False)), sep="\n")
    found = {}
    for name, prompts in (("short", short), ("refined", refined), ("true caption", captions)):
        videos = pipe(prompts, options.videos, batch_size=16)
        found[name] = scores(list(videos), wanted, options.videos)
        means = ", ".join(f"{d} {v:.3f}" for d, v in zip(STATED, np.nanmean(found[name][:, 1:], axis=0), strict=True))
        print(f"{name}: {found[name][:, 0].mean():.4f} ({means})", flush=True)
    gain = (found["refined"] - found["short"])[:, 0]
    interval = bootstrap_mean(gain.tolist(), 10_000).interval
    assert interval is not None
    row = {"refiner": options.refiner, "prompts": len(short), "videos": options.videos}
    row |= {name: round(float(scored[:, 0].mean()), 4) for name, scored in found.items()}
    row |= {"gain": round(float(gain.mean()), 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}
    print(record("prompt_refiner", [row]), row)


if __name__ == "__main__":
    main()
