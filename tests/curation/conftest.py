"""Composing curate.py and train.py on small clips, without a process of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from omegaconf import DictConfig, open_dict

from vidlab.lab.cache_key import check_cache
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.curate import run_curation
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = (
    "trainer=cpu", "precision=32-true", "logger=none", "model.backbone.width=24",
    "model.backbone.heads=2", "model.backbone.depth=1", "data=folder", "data.frames=4", "data.height=16",
    "data.width=16", "data.batch_size=4", "data.num_workers=0", "data.val_clips=3", "data.max_corrupt=3",
    "optimizer.lr=0.01", "lr_schedule=constant", "trainer.max_steps=6",
)  # fmt: skip
WORDS = ["red", "clip", "moves", "the", "blue", "one", "and", *map(str, range(12))]


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("patterns")


@dataclass(frozen=True)
class Lab:
    """What can be typed; ``source`` are the settings of the clips."""

    clips: Path

    def compose(self, program: str, *words: str, **source: Any) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(program, ["hydra.mode=RUN", *SMALL, *words], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.callbacks = {}
            cfg.data.source = {"_target_": "cached_parts.Patterns", "folder": str(self.clips), **source}
        return cfg

    def encode(self, folder: Path, *words: str, **source: Any) -> Path:
        run_curation(self.compose("curate", "stage=encode", f"folder={folder}", *words, **source))
        return folder

    def check(self, *words: str, **source: Any) -> None:
        """What train.py does before anything is computed."""
        cfg = self.compose("train", *words, **source)
        check_cache(cfg, build_module(cfg), build_data(cfg))

    def train(self, *words: str, **source: Any) -> "Losses":
        """A short run: its losses, and those of validation at its end."""
        cfg, losses = self.compose("train", *words, **source), Losses([], [], {}, [])
        torch.manual_seed(0)
        module, data = build_module(cfg), build_data(cfg)
        check_cache(cfg, module, data)
        trainer = build_trainer(cfg, False)
        trainer.callbacks.append(losses.recorder())
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
        losses.val.update({name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name})
        return losses


@dataclass(frozen=True)
class Losses:
    train: list[float]
    keys: list[tuple[str, ...]]
    val: dict[str, float]
    captions: list[tuple[str, ...]]

    def recorder(self) -> Callback:
        class Recorder(Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, number):
                recorded.train.append(float(outputs["loss"]))
                recorded.keys.append(batch.keys)
                recorded.captions.append(batch.captions)

        recorded = self
        return Recorder()


@pytest.fixture
def lab(clips_folder, tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(clips_folder)


def save_bert(folder: Path, seed: int = 0, words: list[str] = WORDS) -> Path:
    """A tiny BERT with its tokenizer, in the real file format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(
            BertConfig(vocab_size=len(WORDS) + 4, hidden_size=16, max_position_embeddings=32, **sizes)
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Callable[..., list[str]]:
    """The words that choose a tiny BERT; ``seed`` is that of its weights, ``words`` its vocabulary."""

    def make(name: str = "bert", **settings: Any) -> list[str]:
        folder = tmp_path_factory.getbasetemp() / name
        if not folder.is_dir():
            save_bert(folder, **settings)
        return ["text_encoder=transformers", f"text_encoder.path={folder}", "text_encoder.max_tokens=16"]

    return make
