"""How closely videos follow the edges they are told, and whether the text still decides the color.

``python benchmarks/structure_control.py <run> [--clips 32]``: a run of ``conditioning=structure`` on moving shapes. For
held-out clips videos are made from the same noise by the parent alone, with the structure of the clip, and with that
structure and another color in the prompt. Appends to ``results/structure_control.csv``, and writes ``sheet.png`` with
five rows for each of the first clips.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import vidlab
from record import record
from vidlab.conditioning.structure.canny import Canny
from vidlab.conditioning.structure.signals import SourceClips
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.scene import COLORS
from vidlab.data.moving_shapes.signals import ShapeEdges
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import contact_sheet, write_png
from vidlab.metrics.intervals import Interval, bootstrap_mean
from vidlab.metrics.shapes.judge import ShapesJudge
from vidlab.metrics.structure.edge_f1 import edge_f1
from vidlab.randomness import KeyedRNG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=None, help="sampling steps; as trained without")
    parser.add_argument("--sheet", type=Path, default=Path("sheet.png"))
    asked = parser.parse_args()
    pipe = vidlab.load(asked.run).using(steps=asked.steps)
    frames, height, width = pipe.clip_shape
    source = MovingShapes(frames, height, width)
    clips = [source.render(number, "val") for number in range(asked.clips)]
    pixels = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3) / 127.5 - 1
    factors = [clip.factors for clip in clips]
    told = SourceClips(pixels, factors)
    structure = pipe.conditioning.whole_structure(pixels, factors)
    draw = KeyedRNG(0, tuple(f"{number}" for number in range(len(clips))), (0,) * len(clips))
    captions = [clip.caption for clip in clips]
    colors = [others(one.objects[0].color, number) for number, one in enumerate(factors)]
    plain = [f"a {one.objects[0].color} {one.objects[0].shape}" for one in factors]
    swapped = [f"a {color} {one.objects[0].shape}" for color, one in zip(colors, factors, strict=True)]
    with torch.inference_mode():
        alone = pipe.clips(captions, draw)
        followed = pipe.clips(captions, draw, structure=structure)
        short = pipe.clips(plain, draw, structure=structure)
        recolored = pipe.clips(swapped, draw, structure=structure)
    rows: list[dict[str, object]] = []
    for name, edges in (("true outlines", ShapeEdges().extract(told)), ("Canny", Canny().extract(told))):
        made_by = {"the clips themselves": pixels, "without control": alone, "with control": followed}
        scores = {kind: edge_f1(Canny().extract(SourceClips(made)) > 0, edges > 0) for kind, made in made_by.items()}
        scores["gain"] = scores["with control"] - scores["without control"]
        for kind, values in scores.items():
            interval = bootstrap_mean(values.tolist(), 2000, seed=0).interval
            rows.append(row("edge F1", name, kind, float(values.mean()), interval, asked.clips))
    changed = [with_color(one, color) for one, color in zip(factors, colors, strict=True)]
    same = [with_color(one, one.objects[0].color) for one in factors]
    for kind, made, facts in (("the clip's own", short, same), ("another", recolored, changed)):
        value, interval = judged(made, facts)
        rows.append(row("color of the judge", "text", kind, value, interval, asked.clips))
    print(record("structure_control", rows))
    shown_rows = torch.stack(
        [pixels, structure.maps[:, :1].expand(-1, 3, -1, -1, -1) * 2 - 1, alone, followed, recolored], 1
    )
    rows = [to_frames(video) for clip in shown_rows[:6] for video in clip.float()]
    labels = [label for number in range(min(6, len(clips))) for label in
              (captions[number], "told", "without control", "with control", swapped[number])]  # fmt: skip
    write_png(asked.sheet, contact_sheet(np.stack(rows), labels=labels))


def others(color: str, number: int) -> str:
    """Another color, a different one for each clip in turn."""
    left = [name for name in COLORS if name != color]
    return left[number % len(left)]


def with_color(factors, color):
    """The factors with the first object in another color, which alone is named."""
    first = replace(factors.objects[0], color=color)
    return replace(factors, objects=(first, *factors.objects[1:]), named=("objects.0.color",))


def judged(videos: torch.Tensor, factors: list) -> tuple[float, Interval | None]:
    judge = ShapesJudge()
    judge.update(videos.float(), factors=factors, keys=[str(number) for number in range(len(videos))])
    found = judge.dimensions()["color"]
    return float(found.value), found.interval


def row(measure: str, against: str, of: str, value: float, interval: Interval | None, clips: int) -> dict[str, object]:
    """Of a table, and printed; edges are Canny's, compared within one pixel."""
    low, high = (interval.low, interval.high) if interval else (float("nan"), float("nan"))
    print(f"{measure} against {against}: {of}: {value:.3f} ({low:.3f} to {high:.3f})")
    return {"clips": clips, "measure": measure, "against": against, "of": of,
            "value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}  # fmt: skip


if __name__ == "__main__":
    main()
