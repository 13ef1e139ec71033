"""Every value that a comment in conf/ names beside its key runs, or is refused in one sentence.

The comments are read: ``key: value  # what it does: one | other`` names values of a key, ``{_target_: a.Class, ...}``
and ``_target_: a.Class`` name classes that may stand in its place. A new comment takes part without touching this file.
"""

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from test_conf import CONF, compose_train, overrides
from test_conf import alone as alone
from vidlab.errors import UserError
from vidlab.lab.train import run_training

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
    "text_encoder/transformers.yaml",
)
NOT_TRAINED = ("system/", "metrics/", "curation/", "engine/")
# whose weights are fetched: tests/perceptual
FETCHED = ("task.perceptual.net",)
# what a value needs beside it
WITH = {
    "callbacks/adaptive_clipping": ["callbacks=[default,adaptive_clipping]"],
    "task/autoencoder task.adaptive_clipping": ["callbacks.finite_loss=null"],
    "train attention=flex": ["trainer.accelerator=cpu"],
}
# choices that are no run of their own
RUN_AS = {"train": "model/full3d", "autoencoder/wfvae_nano": "task/autoencoder"}
REFUSED = {
    "train attention=flex": "attention=flex: torch has no backward pass",
    "train attention=xformers": "attention=xformers: ",
    **{f"train ssm={name}": f"ssm={name}: the model has no state-space kernel" for name in ("torch", "mamba_ssm")},
    "train precision=16-mixed": "precision=16-mixed",
    "init/from_run weights=raw": "init.run=last: no run of experiment",
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


def advertised() -> list[tuple[str, str, str]]:
    """(choice, key within it, value) of everything under conf/ that training reads, but for what is set: test_conf."""
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


def asked_for(choice: str, key: str, value: str, folder: Path) -> DictConfig:
    """The small run of a choice, with the value in place of the key's."""
    group, _, _ = choice.partition("/")
    at_top = choice == "train" or "# @package _global_" in (CONF / f"{choice}.yaml").read_text()
    place = key if at_top else f"{group}.{key}"
    extra = [word for one in (choice, f"{choice} {key}", f"{choice} {key}={value}") for word in WITH.get(one, [])]
    cfg = compose_train(folder, *overrides(RUN_AS.get(choice, choice)), *extra)
    with open_dict(cfg):
        OmegaConf.update(cfg, place, OmegaConf.create(value) if value.startswith("{") else value, merge=False)
    return cfg


@pytest.mark.parametrize(("choice", "key", "value"), ROWS, ids=[f"{c} {k}={v}" for c, k, v in ROWS])
def test_every_named_value_runs_or_is_refused(choice, key, value, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    cfg = asked_for(choice, key, value, tmp_path)
    reason = REFUSED.get(f"{choice} {key}={value}")
    if reason is None:
        loss = run_training(cfg)
        assert loss is None or 0 < loss < float("inf")
        return
    with pytest.raises(UserError) as caught:
        run_training(cfg)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_comments_are_read():
    assert ("train", "attention", "flex") in ROWS and ("train", "precision", "64-true") in ROWS
    assert ("task/autoencoder", "task.latent_scale", "channel") in ROWS
    assert ("callbacks/default", "learning_rate", "{_target_: lightning.pytorch.callbacks.LearningRateMonitor}") in ROWS
    assert set(REFUSED) <= {f"{choice} {key}={value}" for choice, key, value in ROWS}
