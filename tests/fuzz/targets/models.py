"""Folders of models that other libraries read, and the tracking database: left to the long campaign."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ..target import Found, Subject, Target, digest
from .weights import parts_of, tensors

WORDS = ("red", "clip", "moves", "the", "blue", "one", "and")


def make_text_encoder(folder: Path) -> Sequence[Subject]:
    """A tiny BERT with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    return parts_of(folder)


def read_text_encoder(folder: Path) -> Found:
    from vidlab.text.pretrained import PretrainedEncoder

    encoder = PretrainedEncoder(str(folder), max_tokens=16)
    encoder.check("the red clip")
    return Found({"features": digest(encoder(["the red clip moves", "blue"]).tokens.numpy().tobytes())})


def make_image_vae(folder: Path) -> Sequence[Subject]:
    import diffusers

    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**sizes, **blocks).save_pretrained(folder)
    return parts_of(folder)


def read_image_vae(folder: Path) -> Found:
    from vidlab.autoencoders.image_vae import ImageVAE

    vae = ImageVAE(str(folder))
    latents = vae.encode(torch.zeros(1, 3, 1, 8, 8))
    return Found({**tensors(vae.state_dict()).items, "latents": digest(tuple(latents.shape))})


def make_store(folder: Path) -> Sequence[Subject]:
    """A database with one run of three values; made once, since MLflow takes seconds for it."""
    from vidlab.lab.tracking.store import open_client, with_experiment_ready

    kept = folder.parent.parent / "store" / "mlflow.db"
    if not kept.exists():
        kept.parent.mkdir()
        experiment = with_experiment_ready(f"sqlite:///{kept}", "vidlab")
        client = open_client(f"sqlite:///{kept}")
        run = client.create_run(experiment).info.run_id
        for step in range(3):
            client.log_metric(run, "loss", step / 2, step=step)
        (kept.parent / "run.json").write_text(json.dumps(run))
    shutil.copy(kept, folder / "mlflow.db")
    shutil.copy(kept.parent / "run.json", folder)
    return [Subject("mlflow.db", countable=False)]


def read_store(folder: Path) -> Found:
    from vidlab.lab.tracking.store import find_run, with_experiment_ready

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with_experiment_ready(uri, "vidlab")
    run = find_run(uri, json.loads((folder / "run.json").read_text()), "run")
    return Found({"loss": digest(run.data.metrics.get("loss"))})


TARGETS = (
    Target("model.text_encoder", make_text_encoder, read_text_encoder, slow=True),
    Target("model.image_vae", make_image_vae, read_image_vae, slow=True),
    Target("store.mlflow", make_store, read_store, slow=True),
)
