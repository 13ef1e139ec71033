"""A small text encoder that is learned with the denoiser and needs no vocabulary file."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from vidlab.clip import TextEmbedding
from vidlab.errors import UserError
from vidlab.layers.kernels import auto
from vidlab.tensors import read_tensors, refuse_other_shapes
from vidlab.text.base import TextEncoder, masked_mean, token_mask

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")  # noqa: RUF001
TRAINED = "trained.safetensors"  # in the folder of a text encoder that was trained with a denoiser
_REMEMBERED_WORDS = 1 << 16
# Scripts written without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, kana
# with bopomofo, Yi, Javanese, Han with its extensions.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3021-\u3029\u3031-\u3035"
    "\u3038-\u303c\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9df\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)


def split_words(caption: str) -> list[str]:
    """Lower-cased words (with inner apostrophes) and single punctuation marks, after Unicode NFKC.

    The rule for every script: a word is a run of letters and digits, each with the marks that belong to it (the vowel
    signs of Devanagari, the points of Arabic and Hebrew). In scripts written without spaces between words, such as
    Chinese, Japanese and Thai, each character with its marks is a word of its own. Characters that are not seen
    (joiners, marks of direction) are left out.
    """
    text = unicodedata.normalize("NFKC", caption).casefold()
    return _WORD.findall(text) if text.isascii() else _words_of_any_script().findall(_visible(text))


def _visible(text: str) -> str:
    return "".join(char for char in text if unicodedata.category(char) != "Cf")


@cache
def _words_of_any_script() -> re.Pattern[str]:
    """``_WORD`` with marks, which are no part of Python's ``\\w``."""
    planes = *range(0x20000), *range(0xE0100, 0xE01F0)  # no other has any
    marks = "".join(char for char in map(chr, planes) if unicodedata.category(char)[0] == "M")
    letter = rf"(?:[^\W_{_SPACELESS}][{marks}]*)"
    return re.compile(
        rf"{letter}+(?:['’]{letter}+)*|[^\W_][{marks}]*|[{marks}]+|[^\w\s{marks}][{marks}]*|_"  # noqa: RUF001
    )


def hash_rows(word: str, hashes: int, rows: int) -> tuple[int, ...]:
    """The table rows of a word: one keyed BLAKE2b hash per hash function, modulo ``rows``.

    The same on every machine and Python version, unlike ``hash``.
    """
    text = word.encode()
    return tuple(
        int.from_bytes(blake2b(text, digest_size=8, key=b"vidlab-%d" % i).digest(), "little") % rows
        for i in range(hashes)
    )


class WordsEncoder(TextEncoder):
    """Hashed word embeddings and a small pre-norm transformer, learned with the denoiser.

    A word is the sum of ``hashes`` rows of one learned table, chosen by independent hash functions: two words
    coincide only when all their rows do, about one pair in ``rows**hashes / hashes!``. This is Svenstrup,
    Hansen & Winther, "Hash Embeddings for Efficient Word Representations", NeurIPS 2017, section 2, with the
    importance weights fixed to one. A learned start token comes first, so the empty caption has one token.
    Positions are learned. ``pooled`` is a learned linear map of the mean over the real tokens.

    Args:
        width: feature dimension D.
        depth: transformer layers; 0 leaves a bag of words.
        heads: attention heads; must divide ``width``.
        rows: rows of the table.
        hashes: rows summed per word.
        max_tokens: the longest caption in tokens, the start token included.
        path: a ``.safetensors`` file of trained weights of these sizes, or a folder with ``trained.safetensors``; the
            encoder is then frozen, as the denoiser they were trained with knows it. None: it is learned.

    Raises:
        UserError: an argument is out of range, or the weights are missing, damaged or of other sizes.
    """

    hidden_matrices = ("layers.*",)

    def __init__(
        self,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
        rows: int = 4096,
        hashes: int = 2,
        max_tokens: int = 64,
        path: str | None = None,
    ) -> None:
        _check_arguments(
            width=(width, 1), depth=(depth, 0), heads=(heads, 1), rows=(rows, 2), hashes=(hashes, 1),
            max_tokens=(max_tokens, 2),
        )  # fmt: skip
        if width % heads:
            raise UserError(f"text_encoder.heads={heads} does not divide text_encoder.width={width}.")
        super().__init__(width, max_tokens, trainable=path is None)
        self.hashes = hashes
        self.table = nn.Embedding(rows, width)
        self.start = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, width)
        self._rows_of: dict[str, tuple[int, ...]] = {}
        # Words start larger than positions: what is said matters more than where.
        nn.init.normal_(self.table.weight, std=0.1 / hashes**0.5)
        nn.init.normal_(self.start, std=0.1)
        nn.init.normal_(self.positions, std=0.02)
        if path is not None:
            self._freeze(path)

    def _freeze(self, path: str) -> None:
        file = Path(path).expanduser()
        file = file / TRAINED if file.is_dir() else file
        if not file.is_file():
            raise UserError(f"text_encoder.path={path}: there is no file {file.absolute()}.")
        weights = read_tensors(file, "Train or export the run again.")
        refuse_other_shapes(weights, self.state_dict(), f"text_encoder.path={file}", "Give the sizes of its run.")
        self.load_state_dict(weights)
        self.requires_grad_(False)

    @override
    def count_tokens(self, caption: str) -> int:
        return 1 + len(split_words(caption))  # the start token

    @override
    def freeze_pooled(self) -> None:
        self.pool.requires_grad_(False)

    @override
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        words = [split_words(caption) for caption in captions]
        self._note_truncated([1 + len(found) for found in words])
        words = [found[: self.max_tokens - 1] for found in words]
        device = self.start.device
        lengths = tuple(1 + len(found) for found in words)
        mask = token_mask(lengths, device)
        tokens = self._embed(self._ids(words).to(device, non_blocking=True))  # (B, S, D)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        tokens = self.norm(tokens)
        pooled = self.pool(masked_mean(tokens, mask).to(self.pool.weight.dtype))  # left as it is where untrained
        return TextEmbedding(tokens.masked_fill(~mask[..., None], 0.0), mask, pooled, lengths)

    def _ids(self, words: Sequence[Sequence[str]]) -> Int[Tensor, "B W K"]:
        longest = max(len(found) for found in words)
        pad = (0,) * self.hashes
        rows = [[self._lookup(w) for w in found] + [pad] * (longest - len(found)) for found in words]
        return torch.tensor(rows, dtype=torch.long).view(len(words), longest, self.hashes)

    def _lookup(self, word: str) -> tuple[int, ...]:
        found = self._rows_of.get(word)
        if found is None:
            if len(self._rows_of) >= _REMEMBERED_WORDS:
                self._rows_of.clear()
            found = self._rows_of[word] = hash_rows(word, self.hashes, self.table.num_embeddings)
        return found

    def _embed(self, ids: Int[Tensor, "B W K"]) -> Float[Tensor, "B S D"]:
        start = self.start.expand(len(ids), 1, -1)
        tokens = torch.cat([start, self.table(ids).sum(2)], dim=1)  # K rows of each word to one: (B, 1 + W, D)
        return tokens + self.positions[: tokens.shape[1]]


class TextLayer(nn.Module):
    """Pre-norm self-attention over the real tokens, then a pre-norm GELU MLP of four times the width.

    What either adds is scaled by a learned gain for each channel that starts at 0.1 (LayerScale, Touvron et al. 2021,
    "Going deeper with image transformers", section 2): an encoder starts close to a bag of words. With full branches
    the denoiser heard words through a random mixture of them that changed from step to step, and took several times as
    many steps to follow a direction.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.attention_gain = nn.Parameter(torch.full((width,), 0.1))
        self.mlp_gain = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """One layer; padded positions are never attended to."""
        q, k, v = self.qkv(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = auto(q, k, v, mask[:, None, None, :])  # (B, S, N, D / N)
        tokens = tokens + self.attention_gain * self.out(mixed.flatten(2))
        return tokens + self.mlp_gain * self.mlp(tokens)


def _check_arguments(**arguments: tuple[int, int]) -> None:
    for name, (value, least) in arguments.items():
        if value < least:
            raise UserError(f"text_encoder.{name}={value}: must be at least {least}.")
