"""Does a prompt refiner raise the judge's score of a trained model? Short prompts against their expansions.

    python benchmarks/prompt_refiner.py --checkpoint last --refiner refiners/... --prompts 64

Prompts are short ones of held-out clips of moving_shapes, graded on what the short prompt states and on nothing else.
Writes a CSV with a row for each prompt and prints the means with their intervals.
"""

import argparse
import csv
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
import torch

from vidlab import load
from vidlab.clip import Factors
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.short_prompts import short_prompt
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
    """The mean over the stated dimensions, of the ``each`` videos of every prompt; then each of ``STATED``, NaN if not."""
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
    parser.add_argument("--out", default="prompt_refiner.csv")
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
    gain = bootstrap_mean((found["refined"] - found["short"])[:, 0].tolist(), 10_000)
    if gain.interval:
        print(f"refined minus short {(found['refined'] - found['short'])[:, 0].mean():+.4f} "
              f"[{gain.interval.low:+.4f}, {gain.interval.high:+.4f}]")  # fmt: skip
    with Path(options.out).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["date", "machine", "torch", "prompt", "refined", "short_score", "refined_score", "caption_score"]
        )
        where = [datetime.now(UTC).date().isoformat(), platform.machine(), torch.__version__]
        for place, (prompt, expansion) in enumerate(zip(short, refined, strict=True)):
            row = [round(float(found[name][place, 0]), 4) for name in found]
            table.writerow([*where, prompt, expansion, *row])


if __name__ == "__main__":
    main()
