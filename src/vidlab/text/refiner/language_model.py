"""Causal language models by folder: safetensors, GGUF, or a LoRA adapter of either."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidlab.errors import MissingPackageError, UserError, first_line
from vidlab.files import write_json
from vidlab.hub import ADAPTER, model_or_asset_folder, read_json, refuse_code, without_bars

FILES = ("*.json", "*.safetensors", "*.gguf", "*.txt", "*.model", "*.jinja")
RECORD = "refiner.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADVICE = " refiner=asset:smollm2 needs no hub."
# What of an adapter's configuration says how it is added to its model; of the rest nothing may change that.
LORA_KEYS = (
    *("r", "lora_alpha", "target_modules", "lora_dropout", "bias", "fan_in_fan_out", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
UNUSUAL = (
    *("use_dora", "layer_replication", "trainable_token_indices", "target_parameters", "modules_to_save"),
    *("alora_invocation_tokens", "lora_bias", "use_qalora", "megatron_config"),
)


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer, frozen, in evaluation mode.

    Args:
        model: of transformers, perhaps with an adapter.
        tokenizer: its own.
        base: the model without its adapter, by what finds it from every folder: an absolute path, or its name.
        record: ``refiner.json`` of a fine-tuned refiner, else empty.
        source: what it was asked for by, for messages and records.
    """

    model: Any
    tokenizer: Any
    base: str
    record: dict[str, Any]
    source: str

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter."""
        return hasattr(self.model, "peft_config")

    def conversation(self, text: str, chat: bool = True) -> list[int]:
        """Token ids of what a user says, up to the answer.

        By the chat template where there is one and ``chat`` is true, else the text and a line end.
        """
        if chat and getattr(self.tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": text}]
            found = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
            return list(found["input_ids"])
        return list(self.tokenizer(text + "\n", verbose=False)["input_ids"])

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer and of what ends it."""
        return [*self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], self.end]

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)


def load_language_model(reference: str, key: str = "refiner") -> LanguageModel:
    """The model behind a folder, a hub id or ``asset:NAME``.

    A folder holds config.json and safetensors, or one .gguf file, or a LoRA adapter (adapter_config.json), whose model
    is loaded first.

    Raises:
        MissingPackageError: a GGUF file, and the package ``gguf`` is not installed.
        UserError: no such folder, or it cannot be read.
    """
    folder = _folder(reference, key)
    if not (folder / ADAPTER).is_file():
        model, tokenizer = _load(folder, f"{key}={reference}")
        place = str(folder.absolute()) if Path(reference).expanduser().is_dir() else reference
        return LanguageModel(model, tokenizer, place, {}, reference)
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    settings = read_json(folder / ADAPTER)
    base = record.get("base") or settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{key}={reference}: {folder / ADAPTER} does not say of which model it is an adapter.")
    below = _folder(base, key)
    if (below / ADAPTER).is_file():
        raise UserError(f"{key}={reference}: its model {base} is an adapter too. Merge that one first.")
    model, tokenizer = _load(below, f"{key}={base}")
    return LanguageModel(_with_adapter(model, folder, settings, key), tokenizer, base, record, reference)


def _folder(reference: str, key: str) -> Path:
    return model_or_asset_folder(reference, key, FILES, _is_complete, ADVICE)


def _is_complete(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf"))


def _load(folder: Path, key: str) -> tuple[Any, Any]:
    """The model in float32 and the tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    refuse_code(folder, key)
    packed = sorted(folder.glob("*.gguf"))
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if packed and not any(folder.glob("*.safetensors")):
        if len(packed) > 1:
            names = " and ".join(file.name for file in packed[:2])
            raise UserError(f"{key}: {folder} holds {names}; leave one .gguf file in the folder.")
        _need_gguf(packed[0])
        local["gguf_file"] = packed[0].name
    elif not _is_complete(folder) or not (folder / "config.json").is_file():
        raise UserError(f"{key}: {folder} needs config.json and *.safetensors, or one .gguf file.")
    safe = {} if "gguf_file" in local else {"use_safetensors": True}
    try:
        with without_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **local, **safe)
    except Exception as error:  # a strange configuration raises wherever the library first stumbles over it
        reason = first_line(error)
        raise UserError(f"{key}: {folder} is not a readable causal language model: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key}: the tokenizer of {folder} has no end token, so that no answer would end.")
    return model.eval().requires_grad_(False), tokenizer


def _need_gguf(file: Path) -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingPackageError(f"{file} is a GGUF file, which needs a package: pip install -e '.[refiner]'.")


def _with_adapter(model: Any, folder: Path, settings: dict[str, Any], key: str) -> Any:
    """The model with the LoRA of a folder: of its configuration only what describes the LoRA is taken."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    odd = [name for name in UNUSUAL if settings.get(name)]
    if settings.get("peft_type") != "LORA" or odd:
        what = f"asks for {odd[0]}" if odd else f"is of type {settings.get('peft_type')}"
        raise UserError(f"{key}: {folder / ADAPTER} {what}; only plain LoRA adapters are read. Merge it elsewhere.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{key}: {folder} has no {ADAPTER_WEIGHTS}; pickled adapters are not read.")
    try:
        chosen = {name: settings[name] for name in LORA_KEYS if settings.get(name) is not None}
        adapted = with_lora(model, **chosen)
        result = set_peft_model_state_dict(adapted, load_file(folder / ADAPTER_WEIGHTS))
    except Exception as error:  # shapes and names that do not fit are told in many ways
        reason = first_line(error)
        raise UserError(f"{key}: the adapter in {folder} does not fit its model: {reason}") from error
    lacking = [name for name in result.missing_keys if "lora_" in name]
    if lacking or result.unexpected_keys:
        first = [*lacking, *result.unexpected_keys][0]
        raise UserError(f"{key}: the adapter in {folder} does not fit its model, first at {first}.")
    return adapted.eval().requires_grad_(False)


def with_lora(model: Any, **settings: Any) -> Any:
    """The model with LoRA matrices inside, of settings of peft's ``LoraConfig``."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # peft asks for what transformers has renamed
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """``refiner.json``: of which model, from which pairs and with which settings an adapter was made."""
    write_json(folder / RECORD, record)
