"""Every value that a comment in conf/ names beside its key runs, or is refused in one sentence.

The comments are read: ``key: value  # what it does: one | other`` names values of a key, ``{_target_: a.Class, ...}``
and ``_target_: a.Class`` name classes that may stand in its place. A new comment takes part without touching this file.
"""

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from test_conf import CONF, asks_for, compose_train, group_of, overrides, packed
from test_conf import alone as alone
from vidlab.errors import UserError
from vidlab.lab.train import run_training

Row = tuple[str, str, str]  # choice, key within it, value
LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?P<comment>#.*)?$")
WORD = r"[\w.+-]+"
CLASS = re.compile(r"\{?_target_: (?P<name>[\w.]+)(?P<rest>[^}]*)\}?")
# read by programs that sample or encode, with tests of their own: tests/cli and tests/data
ELSEWHERE = (
    "generate.yaml",
    "evaluate.yaml",
    "curate.yaml",
    "bucketing/min_max.yaml",
    "text_encoder/stable_diffusion.yaml",
    "text_encoder/t5_clip.yaml",
    "text_encoder/transformers.yaml",
    "captioner/video_model.yaml",
)
NOT_TRAINED = ("system/", "metrics/", "curation/", "engine/")
# whose weights are fetched: tests/perceptual
FETCHED = ("task.perceptual.net",)
# what a value needs beside it
WITH = {
    "callbacks/adaptive_clipping": ["callbacks=[default,adaptive_clipping]"],
    "task/autoencoder task.adaptive_clipping": ["callbacks.finite_loss=null"],
    "init/parents": ["init.runs={one:last}", "init.parts={one:all}"],
    "train attention=flex": ["trainer.accelerator=cpu"],
    "train compile=true": ["+trainer.limit_val_batches=0"],  # half of the compilation, which takes longest here
}
# choices that are no run of their own
RUN_AS = {"train": "model/full3d", "autoencoder/wfvae_nano": "task/autoencoder"}
REFUSED = {
    "train attention=flex": "attention=flex: torch has no backward pass",
    "train attention=xformers": "attention=xformers: ",
    **{f"train ssm={name}": f"ssm={name}: the model has no state-space kernel" for name in ("torch", "mamba_ssm")},
    "train precision=16-mixed": "precision=16-mixed",
    "init/from_run weights=raw": "init.run=last: no run of experiment",
    "init/parents weights=raw": "init.runs.one=last: no run of experiment",
    "init/mamba_from_attention weights=raw": "init.run=last: no run of experiment",
}


def places(text: str) -> list[tuple[str, str, str]]:
    """(full key, its value, comment) of a file's lines that have one; list items are passed over."""
    found, path = [], []
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"])
        path = [(at, key) for at, key in path if at < depth] + [(depth, match["key"])]
        if match["comment"]:
            found.append((".".join(key for _, key in path), match["value"].strip(), match["comment"]))
    return found


def named(comment: str) -> list[str]:
    """The values that a comment names."""
    classes = [match[0] for match in CLASS.finditer(comment)]
    whole = [one if one.startswith("{") else f"{{{one}}}" for one in classes]
    texts = re.sub(r"\([^)]*\)", "", CLASS.sub("", comment))
    listed = re.search(rf"({WORD})((?:\s*\|\s*{WORD})+)", texts)
    words = [listed[1], *re.findall(WORD, listed[2])] if listed else []
    return whole + words


def advertised() -> list[Row]:
    """Those of everything under conf/ that training reads, but for what is set: test_conf."""
    rows = []
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF).as_posix()
        if name not in ELSEWHERE and not name.startswith(NOT_TRAINED) and "/_" not in name:
            choice, found = name[: -len(".yaml")], places(path.read_text())
            rows += [
                (choice, key, value) for key, chosen, text in found if key not in FETCHED
                for value in named(text) if value != chosen
            ]  # fmt: skip
    return rows


ROWS = advertised()


def place_of(choice: str, key: str) -> str:
    """Where a key of a choice's file is in the whole configuration."""
    at_top = choice == "train" or "# @package _global_" in (CONF / f"{choice}.yaml").read_text()
    return key if at_top else f"{group_of(choice)}.{key}"


def needed(row: Row) -> list[str]:
    choice, key, value = row
    return [word for one in (choice, f"{choice} {key}", f"{choice} {key}={value}") for word in WITH.get(one, [])]


def settings(row: Row) -> dict[str, str]:
    """All that a row sets, by its keys."""
    choice, key, value = row
    words = dict(word.split("=", 1) for word in needed(row))
    asked = {"task": "video_diffusion"} | asks_for(RUN_AS.get(choice, choice))
    return asked | words | {place_of(choice, key): value}


def asked_for(rows: list[Row], folder: Path) -> DictConfig:
    """The small run of the rows' choices, with each value in place of its key's."""
    choices = dict.fromkeys(RUN_AS.get(choice, choice) for choice, _, _ in rows)
    cfg = compose_train(folder, *overrides(*choices), *(word for row in rows for word in needed(row)))
    with open_dict(cfg):
        for choice, key, value in rows:
            new = OmegaConf.create(value) if value.startswith("{") else value
            OmegaConf.update(cfg, place_of(choice, key), new, merge=False)
    return cfg


def name_of(row: Row) -> str:
    return "{} {}={}".format(*row)


RUN = [row for row in ROWS if name_of(row) not in REFUSED]
ALONE = ("train compile=true", "train compile=max")  # a minute of a C++ compiler: among the slow tests only


def runs(rows: list[Row], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLAB_CACHE", str(folder / "cache"))
    loss = run_training(asked_for(rows, folder))
    assert loss is None or 0 < loss < float("inf")


TOGETHER = packed([row for row in RUN if name_of(row) not in ALONE], settings)


@pytest.mark.parametrize("rows", TOGETHER, ids=lambda rows: " ".join(map(name_of, rows)))
def test_named_values_run_together(rows, tmp_path, monkeypatch):
    runs(rows, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("row", RUN, ids=name_of)
def test_every_named_value_runs(row, tmp_path, monkeypatch):
    runs([row], tmp_path, monkeypatch)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in RUN], ids=name_of)
def test_every_other_named_value_is_refused(row, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        run_training(asked_for([row], tmp_path))
    assert REFUSED[name_of(row)] in str(caught.value) and "\n" not in str(caught.value)


def test_the_comments_are_read():
    assert ("train", "attention", "flex") in ROWS and ("train", "precision", "64-true") in ROWS
    assert ("task/autoencoder", "task.latent_scale", "channel") in ROWS
    assert ("callbacks/default", "learning_rate", "{_target_: lightning.pytorch.callbacks.LearningRateMonitor}") in ROWS
    assert set(REFUSED) <= set(map(name_of, ROWS))
