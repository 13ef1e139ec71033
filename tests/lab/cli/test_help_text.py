"""``--help`` explains the settings of one program, and no others."""

import re
from pathlib import Path

import pytest
from hydra._internal.config_repository import CachingConfigRepository

from vidlab.lab.cli.help_text import asks_for_help, help_text

CONF = Path(__file__).resolve().parents[3] / "conf"


def groups(text: str) -> list[str]:
    return re.findall(r"^  (\w+): ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "has", "lacks"),
    [
        ("train", {"model", "callbacks", "experiment", "task", "bucketing"}, {"metrics", "system"}),
        ("curate", {"model", "data", "text_encoder"}, {"metrics", "system"}),
        ("generate", {"sampler", "guidance", "system"}, {"model", "data", "optimizer", "metrics", "trainer"}),
        ("evaluate", {"sampler", "guidance", "metrics", "data"}, {"model", "optimizer", "trainer", "system"}),
    ],
)
def test_the_groups_are_those_of_the_program(program, has, lacks):
    text = help_text(CONF, program)
    assert has <= set(groups(text)) and not lacks & set(groups(text))
    assert "hydra/" not in text and "job_logging" not in text


def test_keys_have_the_comments_of_their_files():
    text = help_text(CONF, "train", ["model=2p1d", "trainer.max_steps=7", "autoencoder=wfvae_nano"])
    assert re.search(r"^ckpt_path: null +# resume: last, a run folder", text, re.MULTILINE)
    assert re.search(r"^  text_dropout: 0.1 +# share of captions replaced by", text, re.MULTILINE), "of a group"
    assert re.search(r"^  qk_norm: false +#", text, re.MULTILINE) is None or "costs a fifth" in text
    assert re.search(r"^    max_tokens: null +# height x width in pixels", text, re.MULTILINE), "of a group in a group"
    assert re.search(r"^  max_steps: 7\b", text, re.MULTILINE), "as typed"
    assert "# WF-VAE of laptop size" in text and "  autoencoder/paper: " in text


def test_a_comment_goes_on_below():
    text = help_text(CONF, "evaluate")
    assert "choices of conf/autoencoder, {choice: image_vae, path: <folder>} with settings, runs, checkpoints" in text


def test_choices_of_ones_own_are_listed(tmp_path):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text("steps: 3  # few\n")
    text = help_text(CONF, "generate", [f"hydra.searchpath=[file://{tmp_path}]", "sampler=mine"])
    assert re.search(r"sampler: .*heun_karras, mine", text) and "steps: 3" in text


def test_hydras_own_flags_are_hydras():
    assert asks_for_help(["--help", "model=2p1d"]) and asks_for_help(["-m", "-h"])
    assert not asks_for_help(["--help", "--config-dir", "x"]) and not asks_for_help(["--cfg", "job"])


def test_the_files_are_read_for_all_groups_at_once(monkeypatch):
    made, begin = [], CachingConfigRepository.__init__

    def counted(self, delegate):
        made.append(self)
        begin(self, delegate)

    monkeypatch.setattr(CachingConfigRepository, "__init__", counted)
    assert len(groups(help_text(CONF, "train"))) > 15 and len(made) == 2  # and once to compose
