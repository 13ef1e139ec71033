"""An exported folder read back, in the form of a checkpoint; untrusted, as a checkpoint is.

``vidlab.json`` holds the settings of the run, the denoiser's weights lie beside it, and what else was trained or stood
in a local folder lies in folders of its own, whose names are fixed here: nothing in the file says where to read.
"""

import json
from pathlib import Path
from typing import Any

from vidlab.backbones.open_sora_plan_release import AGAIN, read_release
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.lab.runs.resolve import EXPORT
from vidlab.tensors import read_tensors
from vidlab.training.checkpoint_io import load_checkpoint

FORMAT = 1
TRAINED = "trained.safetensors"
"""The weights of a text encoder that was trained with the denoiser, in the folder of the text encoder."""
# Folders of an export, by the setting that named what they hold.
FOLDERS = {("text_encoder", "path"): "text_encoder", ("text_encoder", "tokenizer"): "tokenizer",
           ("text_encoder", "pooled_path"): "pooled_text_encoder",
           ("text_encoder", "pooled_tokenizer"): "pooled_tokenizer",
           ("autoencoder", "path"): "vae"}  # fmt: skip
TEXT = FOLDERS["text_encoder", "path"]
AUTOENCODER = FOLDERS["autoencoder", "path"]


def load_stored(checkpoint: Path, weights: str = "ema") -> dict[str, Any]:
    """The content of a checkpoint, or of an exported folder as if it were one.

    Args:
        checkpoint: its file, or ``vidlab.json`` of an exported folder.
        weights: what is asked for, ``ema`` or ``raw``; an export holds one of them.

    Raises:
        UserError: a file that is missing or damaged, or raw weights of an export that holds averaged ones.
    """
    return exported_state(checkpoint.parent, weights) if checkpoint.name == EXPORT else load_checkpoint(checkpoint)


def exported_state(folder: Path, weights: str = "ema") -> dict[str, Any]:
    """An exported folder in the form of a checkpoint, with ``averaged`` true where its weights are averaged ones.

    Raises:
        UserError: as ``load_stored``.
    """
    content = read_json(folder / EXPORT)
    settings = content.get("settings")
    if content.get("format") != FORMAT or not isinstance(settings, dict):
        raise UserError(
            f"{folder / EXPORT} is of format {content.get('format')}, this version of vidlab reads {FORMAT}. {AGAIN}"
        )
    averaged = content.get("weights") == "ema"
    if averaged and weights == "raw":
        raise UserError(f"weights=raw: {folder} holds averaged weights only. Export the run with --weights raw.")
    state = {f"backbone.{name}": value for name, value in read_release(folder).items()}
    text = folder / TEXT / TRAINED
    if text.is_file():
        state |= {f"text_encoder.{name}": value for name, value in read_tensors(text, AGAIN).items()}
    step = content.get("step")
    return {
        "state_dict": state,
        "averaged": averaged,
        "global_step": step if isinstance(step, int) else 0,
        # read as any untrusted configuration is; JSON is YAML
        "config": json.dumps(_with_folders(settings, folder), ensure_ascii=False),
    }


def _with_folders(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings, what lies in the export named by its place, without regularizers, which only train."""
    found = {**settings, "losses": {}}
    for (group, key), name in FOLDERS.items():
        part = found.get(group)
        if isinstance(part, dict) and part.get(key) and (folder / name).is_dir():
            found[group] = {**part, key: str((folder / name).resolve())}
    return found
