"""Two frozen encoders at once: the tokens of one, such as T5, and the one vector of a CLIP."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import TextEmbedding
from vidlab.errors import UserError
from vidlab.text.base import TextEncoder
from vidlab.text.pretrained import PretrainedEncoder

TEXT_TOWERS = ("clip_text_model",)  # types, as transformers names them, whose pooled output is a caption's vector


class CLIPVector(PretrainedEncoder):
    """One vector per caption, of the text tower of a frozen CLIP: what stands at the end token, after the last norm.

    This is what FLUX, Stable Diffusion 3 and Pyramid Flow feed beside the noise level. The projection to the space that
    CLIP shares with images is not applied. ``tokens`` of what it returns is that vector alone.

    Args: as of ``PretrainedEncoder``; the folder may hold a whole CLIP or its text tower.

    Raises:
        UserError: as there, or a model without such a vector.
    """

    key = "text_encoder.pooled_path"
    length_key = "text_encoder.pooled_max_tokens"

    @override
    def _part(self, model: Any) -> Any:
        towers = [part for part in (model, getattr(model, "text_model", None)) if part is not None]
        tower = next((part for part in towers if part.config.model_type in TEXT_TOWERS), None)
        if tower is None:
            raise UserError(
                f"{self.key}: the folder holds a model of type {model.config.model_type!r}, and the vector of a "
                "caption comes from a CLIP (model_type clip or clip_text_model in its config.json)."
            )
        return tower

    @override
    def _forward(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "B 1 D"]:
        # causal, so that padding behind the end token changes nothing before it: each row is cut where it ends
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            rows = [self.model(input_ids=torch.tensor([list(row)], device=device)).pooler_output for row in ids]
        return torch.stack(rows).float()

    @torch.no_grad()
    @override
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        ids = self._ids(captions)
        self._note_truncated([len(row) for row in ids])
        device = next(self.model.parameters()).device
        rows = [self._vector(tuple(self._cut(row))) for row in ids]
        vectors = torch.cat(rows).to(device)  # (B, D)
        return TextEmbedding(vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool, device=device), vectors)

    def _vector(self, ids: tuple[int, ...]) -> Float[Tensor, "1 D"]:
        return self._forward([ids])[0] if self._cache is None else self._remembered(ids)


class TokensAndVector(TextEncoder):
    """Tokens of one frozen encoder and, as ``pooled``, the vector of a CLIP: M4V's and Pyramid Flow's text.

    ``pooled`` is ``pooled_width`` wide, which need not be the width of the tokens. A caption that is longer than CLIP
    reads is cut for CLIP alone.

    Args:
        path: the encoder of tokens, T5-XXL in the papers: a local folder in the format of transformers (config.json,
            *.safetensors, tokenizer files), or a hub id.
        pooled_path: a CLIP, or its text tower, likewise: ViT-L/14 in the papers, 768 wide.
        max_tokens: longest caption in tokens of the first, special ones included; 128 in Pyramid Flow.
        pooled_max_tokens: longest caption for CLIP.
        tokenizer: folder of the first one's tokenizer, where it is not that of the weights, as in diffusers' layout.
        pooled_tokenizer: folder of CLIP's tokenizer, likewise.
        dtype: the precision both compute in.
        cache_mb: memory for remembered captions of each, in MiB.

    Raises:
        MissingPackageError: as ``PretrainedEncoder``.
        UserError: a path is missing, and which; or as ``PretrainedEncoder``.
    """

    def __init__(
        self,
        path: str | None = None,
        pooled_path: str | None = None,
        max_tokens: int = 128,
        pooled_max_tokens: int = 77,
        tokenizer: str | None = None,
        pooled_tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        cache_mb: int = 256,
    ) -> None:
        missing = [key for key, value in (("path", path), ("pooled_path", pooled_path)) if not value]
        if missing:
            raise UserError(
                f"{' and '.join(f'text_encoder.{key}' for key in missing)} {'is' if len(missing) == 1 else 'are'} not "
                "set. Give local folders with config.json, *.safetensors and a tokenizer: text_encoder.path of a T5, "
                "which gives tokens, and text_encoder.pooled_path of a CLIP, which gives one vector. With one encoder "
                "alone: text_encoder=transformers."
            )
        words = PretrainedEncoder(path, max_tokens, dtype, cache_mb, tokenizer)
        vector = CLIPVector(pooled_path, pooled_max_tokens, dtype, cache_mb, pooled_tokenizer)
        super().__init__(words.width, max_tokens, trainable=False)
        self.words, self.vector = words, vector

    @property
    @override
    def pooled_width(self) -> int:
        return self.vector.width

    @override
    def count_tokens(self, caption: str) -> int:
        return self.words.count_tokens(caption)

    @override
    def tokenization(self) -> str:
        return f"{self.words.tokenization()}\n{self.vector.tokenization()}"

    @override
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        found = replace(self.words.encode(captions), pooled=self.vector.encode(captions).pooled)
        self.truncated = self.words.truncated
        return found
