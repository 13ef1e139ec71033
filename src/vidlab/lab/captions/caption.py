"""``stage=caption``: captions for a data set, and a data set that has them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vidlab.chat.journal import Usage
from vidlab.command_line import command, setting
from vidlab.curation.captions.captioned_data import CaptionedData, source_clips, write_captions
from vidlab.curation.captions.captioner import Captioner
from vidlab.curation.captions.statistics import table_of
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import UserError
from vidlab.files import write_json, write_text
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar

CAPTIONS = Path("captions")


def run_captions(cfg: DictConfig) -> str:
    """Caption the clips of ``cfg.data``; returns what to print."""
    data, captioner = open_data(cfg), make_captioner(cfg, "captioner")
    index = ClipIndex.open(data.source.prepare())
    folder = Path(cfg.folder).expanduser() if cfg.folder else default_folder(data, captioner)
    folder.mkdir(parents=True, exist_ok=True)
    with bar(f"captions by {captioner.source}", len(index)) as advance:

        def told() -> Any:
            for one in captioner.describe(source_clips(index, data.limits), folder):
                advance(1)
                yield one

        made = write_captions(index, str(data.name), told(), folder, cfg.caption.keep)
    return caption_text(made, captioner.spent(), str(data.name), index)


def open_data(cfg: DictConfig) -> ClipDataModule:
    """The DataModule of the configuration.

    Raises:
        UserError: it is of another kind.
    """
    data = instantiate(cfg.data, "data")
    if not isinstance(data, ClipDataModule):
        raise UserError(f"data={cfg.data.get('name')}: {type(data).__name__} holds no clips with captions.")
    return data


def make_captioner(cfg: DictConfig, key: str) -> Captioner:
    """The captioner under ``key``."""
    made = instantiate(cfg[key], key)
    assert isinstance(made, Captioner)
    return made


def default_folder(data: ClipDataModule, captioner: Captioner) -> Path:
    """``captions/<data>-<source>``: the same for the same command, so that it goes on where it was stopped."""
    return CAPTIONS / f"{data.name}-{file_word(captioner.source)}"


def file_word(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "captions"


def caption_text(made: CaptionedData, spent: Mapping[str, Usage], name: str, index: ClipIndex) -> str:
    """What was written, what it took, and what to type next."""
    report = [f"# Captions of data={name}", "", table_of(made.statistics), ""]
    report += [f"{who}: {usage} in this run" for who, usage in spent.items()]
    report += [f"{len(made.rejected)} clips have no caption and are left out"] if made.rejected else []
    write_text(made.folder / "report.md", "\n".join(report) + "\n")
    costs = {who: vars(usage) for who, usage in spent.items()}
    write_json(made.folder / "usage.json", costs)
    lines = [f"{made.folder}\n  {made.clips} clips of data={name} have captions", *report[2:]]
    if made.rejected:
        key, reason = next(iter(made.rejected.items()))
        lines.append(f"  first {key}: {reason}")
    train = command("train.py", "data=captioned", setting("data.path", made.folder))
    lines.append(f"  train on it   {train}")
    if made.annotation is not None:
        words = ["data=open_sora_plan", setting("data.path", index.root)]
        words.append(setting("data.source.annotation", made.annotation.absolute()))
        lines.append(f"  as a list in Open-Sora Plan's format   {command('train.py', *words)}")
    return "\n".join(lines)
