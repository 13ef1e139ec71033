"""``stage=dsg``: how much captioners make up, alone or two compared."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vidlab.chat.client import ChatClient
from vidlab.chat.endpoint import Endpoint
from vidlab.chat.journal import Journal, Usage
from vidlab.curation.captions.captioner import Captioner, SourceClip, as_png
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import DataError, UserError
from vidlab.files import write_json, write_text
from vidlab.lab.captions.caption import file_word, make_captioner, open_data
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.metrics.dsg.comparison import Difference, differences, table_of
from vidlab.metrics.dsg.dsg_video import CaptionOfFrames, DSGVideo
from vidlab.metrics.dsg.scores import CheckedCaption, dsg_scores
from vidlab.randomness import generator

FOLDER = Path("dsg")
LISTED = 10
LEAST = {"clips": 1, "frames": 1, "longest_side": 16}
JOURNALS = ("questions.answers.jsonl", "frames.answers.jsonl")


@dataclass(frozen=True)
class Models:
    """Who asks and who looks; their answers are kept in files of ``folder``."""

    language: Endpoint
    vision: Endpoint
    folder: Path


def run_dsg(cfg: DictConfig) -> str:
    """Check the captions of ``cfg.captioner`` on clips drawn at random; returns what to print."""
    for name, least in LEAST.items():
        if not isinstance(cfg.dsg[name], int) or cfg.dsg[name] < least:
            raise UserError(f"dsg.{name}={cfg.dsg[name]}: it must be a whole number of {least} or more.")
    captioners = [make_captioner(cfg, key) for key in ("captioner", "against") if cfg.get(key) is not None]
    if len({one.source for one in captioners}) < len(captioners):
        raise UserError(
            f"against={captioners[0].source}: both captioners are called so. Name one with against.name=..."
        )
    language, vision = (endpoint_of(cfg, key) for key in ("language", "vision"))
    data = open_data(cfg)
    clips = drawn(data, cfg.dsg.clips, cfg.seed)
    given = "-and-".join(file_word(one.source) for one in captioners)
    folder = Path(cfg.folder).expanduser() if cfg.folder else FOLDER / f"{data.name}-{given}"
    folder.mkdir(parents=True, exist_ok=True)
    spent: dict[str, Usage] = {}
    checked = {}
    for captioner in captioners:
        captions = captions_to_check(captioner, clips, folder, cfg.dsg.frames, cfg.dsg.longest_side)
        checked[captioner.source] = check(captioner, captions, Models(language, vision, folder), spent)
        for who, usage in captioner.spent().items():
            spent[f"captions by {who}"] = usage
    return report(cfg, str(data.name), Models(language, vision, folder), checked, spent)


def endpoint_of(cfg: DictConfig, key: str) -> Endpoint:
    """The server under ``dsg.<key>``, asked for the likeliest answer."""
    made = instantiate(cfg.dsg[key], f"dsg.{key}")
    assert isinstance(made, Endpoint)
    return replace(made, temperature=0.0)


def drawn(data: ClipDataModule, count: int, seed: int) -> list[SourceClip]:
    """Clips drawn at random, in the order of the index; the same for a seed."""
    index = ClipIndex.open(data.source.prepare())
    order = torch.randperm(len(index), generator=generator(seed, "dsg", "clips")).tolist()
    return [SourceClip(index.row(place), index.root, data.limits) for place in sorted(order[:count])]


def captions_to_check(
    captioner: Captioner, clips: list[SourceClip], folder: Path, frames: int, longest_side: int
) -> list[CaptionOfFrames]:
    """The first caption of each clip that has one."""
    own = folder / file_word(captioner.source)
    own.mkdir(exist_ok=True)
    found = []
    with bar(f"captions by {captioner.source}", len(clips)) as advance:
        for one in captioner.describe(clips, own):
            advance(1)
            if one.captions:
                shown = partial(pictures, one.clip, frames, longest_side)
                found.append(CaptionOfFrames(one.clip.row.key, one.captions[0].text, shown))
    if not found:
        raise DataError(f"captioner={captioner.source}: none of {len(clips)} clips has a caption.")
    return found


def pictures(clip: SourceClip, count: int, longest_side: int) -> list[bytes]:
    """PNG files of frames spread evenly over a clip."""
    return [as_png(frame, longest_side) for frame in clip.frames(count)]


def check(
    captioner: Captioner, captions: list[CaptionOfFrames], models: Models, spent: dict[str, Usage]
) -> list[CheckedCaption]:
    """The captions of one captioner, checked; what it took is added to ``spent``."""
    with ExitStack() as open_files:
        journals = [open_files.enter_context(Journal(models.folder / name)) for name in JOURNALS]
        language, vision = (
            ChatClient(endpoint, journal)
            for endpoint, journal in zip((models.language, models.vision), journals, strict=True)
        )
        advance = open_files.enter_context(bar(f"objects of {captioner.source}", len(captions)))
        checked = list(_told(DSGVideo(language, vision).check(captions), advance))
    for role, client in (("questions", language), ("answers", vision)):
        name = f"{role} by {client.endpoint.source}"
        spent[name] = spent.get(name, Usage()) + client.spent
    return sorted(checked, key=lambda one: one.key)


def _told(checked: Iterator[CheckedCaption], advance: Any) -> Iterator[CheckedCaption]:
    for one in checked:
        advance(1)
        yield one


def report(
    cfg: DictConfig,
    name: str,
    models: Models,
    checked: Mapping[str, list[CheckedCaption]],
    spent: Mapping[str, Usage],
) -> str:
    """Write ``dsg.json`` and ``report.md``; returns what to print."""
    first, *others = checked.values()
    compared = [one for other in others for one in differences(first, other, seed=cfg.seed)]
    who = f"questions by {models.language.source}, answers by {models.vision.source}, {cfg.dsg.frames} frames of a clip"
    content = {
        "data": name,
        "questions_by": models.language.source,
        "answers_by": models.vision.source,
        "frames": cfg.dsg.frames,
        "seed": cfg.seed,
        "scores": {source: asdict(dsg_scores(captions)) for source, captions in checked.items()},
        "differences": [asdict(one) for one in compared],
        "usage": {role: asdict(usage) for role, usage in spent.items()},
        "captions": {source: [_record(one) for one in captions] for source, captions in checked.items()},
    }
    write_json(models.folder / "dsg.json", content)
    lines = [table_of(checked), "", f"95 % intervals in brackets, in percent; lower is better. {who}."]
    lines += [_compared(one, list(checked)) for one in compared]
    lines += _examples(checked)
    lines += ["", *(f"{role}: {usage} in this run" for role, usage in spent.items() if usage.calls)]
    write_text(models.folder / "report.md", "\n".join([f"# DSG-Video of data={name}", "", *lines]) + "\n")
    return "\n".join([*lines, f"  {models.folder}/report.md, dsg.json"])


def _record(one: CheckedCaption) -> dict[str, Any]:
    found = [{"object": seen.name, "state": seen.state, "answers": seen.answers} for seen in one.objects or ()]
    objects = None if one.objects is None else found
    return {"key": one.key, "caption": one.caption, "objects": objects, "reason": one.reason}


def _compared(one: Difference, names: list[str]) -> str:
    if one.value is None or one.interval is None:
        return f"{one.name}: nothing to compare"
    sure = "" if one.sure else " (0 is within: no difference is shown)"
    return (
        f"{one.name}, {names[1]} minus {names[0]}: {one.value:+.1f} points "
        f"[{one.interval.low:+.1f}, {one.interval.high:+.1f}]{sure}"
    )


def _examples(checked: Mapping[str, list[CheckedCaption]]) -> list[str]:
    """Some captions with objects that no frame shows."""
    lines = []
    for source, captions in checked.items():
        bad = [one for one in captions if one.count("hallucinated")]
        lines += ["", f"## Hallucinated by {source}: {len(bad)} captions"] if bad else []
        for one in bad[:LISTED]:
            names = ", ".join(seen.name for seen in one.objects or () if seen.state == "hallucinated")
            lines.append(f"- {one.key}: **{names}** in: {one.caption}")
    return lines
