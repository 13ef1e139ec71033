"""Autoencoders side by side: a table, a CSV file, and the same clips through each of them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vidlab.data.video.contact_sheets import contact_sheet, grid_mp4, write_png
from vidlab.files import cell, named_cells, open_table
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.compose import resolve_accelerator
from vidlab.lab.evaluation.clips import ScoredClip
from vidlab.lab.evaluation.reconstruction import Cost, Setup
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.evaluation.report_files import write_report
from vidlab.lab.runs.provenance import collect
from vidlab.metrics.base import key_number
from vidlab.precision import resolve_precision
from vidlab.training.autoencoder.latent_stats import LatentMoments

SHOWN = 4  # clips in the pictures
FRAMES_SHOWN = 9  # of a clip, in the contact sheet


@dataclass(frozen=True)
class Subject:
    """An autoencoder's scores, what it costs, and how its latents of these clips are distributed."""

    evaluated: Evaluated
    cost: Cost
    latents: LatentMoments

    def facts(self) -> dict[str, float]:
        """Costs and moments of the latents as numbers by name; what the system does not tell is left out."""
        cost = self.cost
        found = {
            "parameters": float(cost.parameters),
            "latent_values": float(cost.values),
            "latent_mean": self.latents.together.mean.item(),
            "latent_std": self.latents.together.std.item(),
            "compression": cost.compression,
            "encode_frames_per_second": cost.encode_rate,
            "decode_frames_per_second": cost.decode_rate,
            "encode_peak_mib": cost.encode_mib,
            "decode_peak_mib": cost.decode_mib,
        }
        return {name: value for name, value in found.items() if value is not None}


def write_reconstruction_report(
    folder: Path, subjects: Sequence[Subject], originals: Sequence[ScoredClip], setup: Setup, data: str
) -> list[Path]:
    """Write everything, print the tables, and give the files that a store should keep.

    Args:
        folder: where to.
        subjects: with different names.
        originals: the clips.
        setup: how they were reconstructed.
        data: the name of the data set.
    """
    frames, height, width = subjects[0].cost.size
    about = f"{len(originals)} held-out clips of data={data}, {frames} frames of {height} x {width}."
    head = ["\n".join(["# Autoencoders", "", about, "", side_by_side_table(subjects), "", *notes(subjects, setup), ""])]
    folder.mkdir(parents=True, exist_ok=True)
    facts = write_facts(folder / "autoencoders.csv", subjects)
    channels = write_channels(folder / "latents.csv", subjects)
    pictures = write_side_by_side(folder, subjects, originals, setup.fps)
    write_report(folder, [subject.evaluated for subject in subjects], head)
    print(f"  side by side {', '.join(str(path) for path in pictures)}; costs in {facts}, latents in {channels}")
    return [folder / "report.md", folder / "scores.csv", folder / "clips.csv", facts, channels, *pictures]


def side_by_side_table(subjects: Sequence[Subject]) -> str:
    """One row for each autoencoder, as Markdown; a dash where something was not measured."""
    metrics = _metrics(subjects)
    columns = ["autoencoder", *metrics, "latent", "latent std", "values", "compression", "parameters",
               "encode frames/s", "decode frames/s", "encode MiB", "decode MiB"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join(lines + [f"| {' | '.join(_cells(subject, metrics))} |" for subject in subjects])


def _metrics(subjects: Sequence[Subject]) -> list[str]:
    return list(dict.fromkeys(name for subject in subjects for name in subject.evaluated.scores.results))


def _cells(subject: Subject, metrics: Sequence[str]) -> list[str]:
    cost, results = subject.cost, subject.evaluated.scores.results
    values = [f"{results[name].value:.4g}" if name in results else "-" for name in metrics]
    latent = " x ".join(str(size) for size in cost.latent)
    memory = ["-" if most is None else f"{most:.0f}" for most in (cost.encode_mib, cost.decode_mib)]
    return [
        markdown(subject.evaluated.name),
        *values, latent, f"{subject.latents.together.std.item():.3g}", str(cost.values),
        f"{cost.compression:.3g}", f"{cost.parameters:,}", f"{cost.encode_rate:.4g}", f"{cost.decode_rate:.4g}",
        *memory,
    ]  # fmt: skip


def notes(subjects: Sequence[Subject], setup: Setup) -> list[str]:
    """What a reader of the table must know."""
    device = resolve_accelerator(setup.device)
    found = collect().hardware
    machine = ", ".join(found.gpus) if device == "cuda" else f"{found.cpu}, {torch.get_num_threads()} threads"
    told = [
        f"- Frames per second are medians over batches of {subjects[0].cost.batch} clips in {_precision(setup)} on "
        f"{machine}; one after another on a machine that may have other work (benchmarks/autoencoders.py takes turns).",
        "- MiB are the most held above what was held before: "
        + ("by tensors on the GPU." if device == "cuda" else "by the process, the latents or pixels made included."),
        "- Values are the numbers in a clip's latents; compression is 3 x frames x height x width over values. Pixels "
        "were rounded to 8 bits before they were compared.",
        "- Latent std is that of all latents together, as a denoiser gets them: about 1 suits one. latents.csv has "
        "the mean and std of every channel.",
    ]
    for subject in subjects:
        cost = subject.cost
        if cost.padded != cost.size:
            axes = zip(("frame", "row", "column"), cost.size, cost.padded, strict=True)
            grown = " and the last ".join(name for name, has, want in axes if want > has)
            told.append(
                f"- {markdown(subject.evaluated.name)} does not take {_times(cost.size)}: the last {grown} was "
                f"repeated to {_times(cost.padded)}, and what came out was cut back."
            )
    return told


def _precision(setup: Setup) -> str:
    return resolve_precision(setup.precision, setup.device)


def _times(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)


def write_facts(path: Path, subjects: Sequence[Subject]) -> Path:
    """Scores and costs, one row for each autoencoder."""
    metrics = _metrics(subjects)
    rows: list[Mapping[str, object]] = []
    for subject in subjects:
        evaluated, cost = subject.evaluated, subject.cost
        scores = {name: repr(evaluated.scores.results[name].value) for name in metrics
                  if name in evaluated.scores.results}  # fmt: skip
        shape = {"size": _times(cost.size), "padded": _times(cost.padded), "latent": _times(cost.latent)}
        rows.append({"subject": evaluated.name, "source": evaluated.source, **scores, **shape, **subject.facts()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open_table(path) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(map(named_cells, rows))
    return path


def write_channels(path: Path, subjects: Sequence[Subject]) -> Path:
    """Mean and standard deviation of the latents, one row for each autoencoder and channel."""
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "channel", "mean", "std"])
        for subject in subjects:
            moments = zip(subject.latents.mean.tolist(), subject.latents.std.tolist(), strict=True)
            writer.writerows([cell(subject.evaluated.name), channel, *pair] for channel, pair in enumerate(moments))
    return path


def write_side_by_side(
    folder: Path, subjects: Sequence[Subject], originals: Sequence[ScoredClip], fps: float
) -> list[Path]:
    """The first clips, original and reconstructions beneath and beside each other: a contact sheet and a film."""

    shown = range(min(SHOWN, len(originals)))
    videos = [[clips[place].frames() for clips in _columns(subjects, originals)] for place in shown]
    labels = [[f"original: {originals[place].caption}", *(_label(subject, originals[place]) for subject in subjects)]
              for place in shown]  # fmt: skip
    count = videos[0][0].shape[0]
    frames = np.unique(np.linspace(0, count - 1, min(count, FRAMES_SHOWN)).round().astype(int))
    rows = np.stack([video[frames] for row in videos for video in row])
    sheet = folder / "side_by_side.png"
    write_png(sheet, contact_sheet(rows, [label for row in labels for label in row]))
    film = grid_mp4(folder / "side_by_side.mp4", np.stack([v for row in videos for v in row]), fps, len(subjects) + 1)
    return [sheet, film]


def _columns(subjects: Sequence[Subject], originals: Sequence[ScoredClip]) -> list[Sequence[ScoredClip]]:
    return [originals, *(subject.evaluated.clips for subject in subjects)]


def _label(subject: Subject, clip: ScoredClip) -> str:
    """The name, and this clip's scores."""
    number, told = key_number(clip.key), []
    for name, result in subject.evaluated.scores.results.items():
        if number in result.keys:
            value = result.scores[result.keys.index(number)]
            told += [f"{name} {value:.3g}"] if math.isfinite(value) else []
    return ", ".join([subject.evaluated.name, *told])
