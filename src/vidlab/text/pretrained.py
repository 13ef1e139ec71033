"""Frozen Hugging Face encoders: T5, UMT5, BERT, MiniLM, the text tower of CLIP."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import TextEmbedding
from vidlab.errors import MissingPackageError, UserError, first_line
from vidlab.hub import model_or_asset_folder, refuse_code
from vidlab.text.base import TextEncoder, masked_mean, token_mask

FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_ADVICE = " text_encoder=minilm and text_encoder=words need no hub."


class PretrainedEncoder(TextEncoder):
    """The last hidden states of a frozen transformer; ``pooled`` is their mean over the real tokens.

    The encoder stays in evaluation mode, without gradients, and outside autocast, so its features do not
    depend on the trainer's precision. Features are returned as float32. Of encoder-decoder models only the
    encoder runs. Only safetensors weights are read and no code of the model's folder is run.

    Each caption is encoded on its own and remembered, so its bits never depend on the other captions of the
    batch nor on what was seen before a resume. With ``cache_mb=0`` nothing is remembered and a batch is
    encoded at once, which is faster when captions hardly repeat.

    Args:
        path: a local folder (config.json, *.safetensors, tokenizer files), a hub id such as
            ``google-t5/t5-small``, or ``asset:NAME`` for a pinned model of ``vidlab.assets``.
        max_tokens: the longest caption in tokens, special tokens included.
        dtype: the precision the encoder computes in.
        cache_mb: memory for remembered captions, in MiB on the CPU; the least recently used go first.
        tokenizer: the local folder of the tokenizer, where it is not that of the weights.
        padded: captions are padded to ``max_tokens``, and padding is text like any other, as Stable Diffusion was
            trained (with ``max_tokens=77``).

    Raises:
        MissingPackageError: the tokenizer is a SentencePiece model and the package ``sentencepiece`` is not installed.
        UserError: the path is unset, not found or not readable, or ``max_tokens`` is out of range.
    """

    key = "text_encoder.path"
    length_key = "text_encoder.max_tokens"

    def __init__(
        self,
        path: str | None = None,
        max_tokens: int = 128,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        cache_mb: int = 256,
        tokenizer: str | None = None,
        padded: bool = False,
    ) -> None:
        if not path:
            raise UserError(
                f"{self.key} is not set. Give a local folder with config.json and *.safetensors, "
                "a hub id such as google-t5/t5-small, or asset:minilm."
            )
        if max_tokens < 2:
            raise UserError(f"{self.length_key}={max_tokens}: must be at least 2.")
        folder = model_or_asset_folder(path, self.key, FILES, is_complete, _ADVICE)
        words = Path(tokenizer).expanduser() if tokenizer else folder
        _check_sentencepiece(words)
        own_tokenizer, loaded = _load(f"{self.key}={path}", folder, words, getattr(torch, dtype))
        model = self._part(loaded)
        super().__init__(_width(model), max_tokens, trainable=False)
        self.tokenizer = own_tokenizer
        self.model = model.eval().requires_grad_(False)
        self.padding: int | None = self.tokenizer.pad_token_id if padded else None
        if padded and self.padding is None:
            raise UserError("text_encoder.padded=true: the tokenizer has no padding token. Leave it out.")
        self._cache = FeatureCache(cache_mb * 2**20) if cache_mb > 0 else None
        self._check_length(path)

    def _part(self, model: Any) -> Any:
        """The part of a loaded model that is run."""
        return model

    @override
    def train(self, mode: bool = True) -> "PretrainedEncoder":
        return super().train(False)  # frozen

    @override
    def count_tokens(self, caption: str) -> int:
        return len(self._ids([caption])[0])

    @override
    def tokenization(self) -> str:
        # the tokenizer's whole state, or its vocabulary and special tokens where it has no such form
        self._ids([""])  # the first call undoes padding and truncation that the file may ask for
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            return str(backend.to_str())
        return json.dumps([self.tokenizer.get_vocab(), self.tokenizer.all_special_tokens], sort_keys=True)

    @torch.no_grad()
    @override
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        ids = self._ids(captions)
        self._note_truncated([len(row) for row in ids])
        ids = [self._cut(row) for row in ids]
        if self.padding is not None:
            ids = [row + [self.padding] * (self.max_tokens - len(row)) for row in ids]
        if self._cache is None:
            tokens = self._forward(ids)  # (B, S, D)
        else:
            device = next(self.model.parameters()).device
            rows = [self._remembered(tuple(row)).to(device, torch.float32) for row in ids]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = tuple(len(row) for row in ids)
        mask = token_mask(lengths, tokens.device)
        tokens = tokens.masked_fill(~mask[..., None], 0.0)
        return TextEmbedding(tokens, mask, masked_mean(tokens, mask), lengths)

    def _remembered(self, ids: tuple[int, ...]) -> Float[Tensor, "S D"]:
        assert self._cache is not None
        found = self._cache.get(ids)
        if found is None:
            found = self._forward([list(ids)])[0].cpu()
            self._cache.put(ids, found)
        return found

    def _forward(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "B S D"]:
        device = next(self.model.parameters()).device
        mask = token_mask([len(row) for row in ids], device)
        padded = torch.zeros(mask.shape, dtype=torch.long, device=device)
        padded[mask] = torch.tensor([i for row in ids for i in row], device=device)
        with torch.autocast(device.type, enabled=False):
            output = self.model(input_ids=padded, attention_mask=mask.long())
        return output.last_hidden_state.float()

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer(list(captions), add_special_tokens=True, verbose=False)["input_ids"]
        rows = [list(row) or [self._null_token()] for row in found]
        known = self.model.get_input_embeddings().num_embeddings
        largest = max((max(row) for row in rows), default=0)
        if largest >= known:
            raise UserError(
                f"text_encoder: the tokenizer makes a token {largest}, and the model knows {known}. Fetch both from "
                "one place."
            )
        return rows

    def _cut(self, row: list[int]) -> list[int]:
        """At most ``max_tokens`` tokens, keeping the special token that ends a T5, BERT or CLIP caption."""
        if len(row) <= self.max_tokens:
            return row
        ending = [row[-1]] if row[-1] in self.tokenizer.all_special_ids else []
        return row[: self.max_tokens - len(ending)] + ending

    def _null_token(self) -> int:
        """The token of an empty caption, for tokenizers that add no special tokens."""
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            if token is not None:
                return int(token)
        return 0

    def _check_length(self, path: str) -> None:
        limits = [
            getattr(self.model.config, "max_position_embeddings", None),
            self.tokenizer.model_max_length,
        ]
        # Tokenizers without a limit of their own report an astronomically large one.
        known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**6]
        if known and self.max_tokens > min(known):
            raise UserError(
                f"{self.length_key}={self.max_tokens}: {path} reads at most {min(known)} tokens. "
                f"Set {self.length_key}={min(known)} or less."
            )


class FeatureCache:
    """Remembers token features by token ids, up to ``capacity`` bytes; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._features: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> Tensor | None:
        """The remembered features, or None."""
        found = self._features.get(ids)
        if found is not None:
            self._features.move_to_end(ids)
        return found

    def put(self, ids: tuple[int, ...], features: Tensor) -> None:
        """Remember features, forgetting old ones to make room."""
        self._features[ids] = features
        self.used += features.nbytes
        while self.used > self.capacity and len(self._features) > 1:
            _, oldest = self._features.popitem(last=False)
            self.used -= oldest.nbytes


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a configuration and safe weights."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_sentencepiece(folder: Path) -> None:
    """Refuse early what transformers reports as a missing tiktoken."""
    from importlib.util import find_spec

    models = sorted(file.name for file in folder.glob("*.model"))
    if models and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise MissingPackageError(
            f"{folder / models[0]} is a SentencePiece tokenizer, which needs a package: pip install sentencepiece. "
            "(A folder with tokenizer.json does not need it.)"
        )


# What a library written in Rust raises where it gives up; no Exception, and of a class that cannot be imported.
RUST_PANIC = "PanicException"


def _load(setting: str, folder: Path, words: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The tokenizer and the encoder of a folder."""
    if not is_complete(folder):
        raise UserError(
            f"{setting}: {folder} needs config.json and *.safetensors weights. "
            "Pickled weights are not read; load them once elsewhere and save_pretrained(folder)."
        )
    refuse_code(folder, setting)
    if words != folder:
        refuse_code(words, "tokenizer")
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **local)
        loader: Any = AutoModel
        if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
            loader = MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
        model = loader.from_pretrained(folder, use_safetensors=True, dtype=dtype, **local)
        tokenizer = AutoTokenizer.from_pretrained(words, **local)
        tokenizer(["a caption"], add_special_tokens=True, verbose=False)  # odd settings fail where they are used
    except BaseException as error:  # a strange configuration raises wherever the library first stumbles over it
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        reason = first_line(error)
        raise UserError(f"{setting}: {folder} is not a readable text encoder with its tokenizer: {reason}") from error
    if model.config.is_encoder_decoder and not type(model).__name__.endswith("EncoderModel"):
        model = model.get_encoder()
    return tokenizer, model


def _width(model: Any) -> int:
    return int(getattr(model.config, "hidden_size", 0) or model.config.d_model)
