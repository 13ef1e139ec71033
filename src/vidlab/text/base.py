"""The protocol of text encoders, captions to ``TextEmbedding``; masks, masked means and the null prompt."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vidlab.clip import TextEmbedding
from vidlab.errors import UserError

log = logging.getLogger(__name__)


class TextEncoder(nn.Module, ABC):
    """Captions -> token features (B, S, D), the mask of real tokens (B, S) and one vector per caption (B, P).

    The empty caption ``""`` is the null prompt of text dropout and classifier-free guidance; it has at
    least one real token. S is the longest caption of the batch. Padding is masked in attention and its
    features are exactly zero, so a caption's features do not depend on the other captions of its batch
    beyond rounding.

    Attributes:
        width: the feature dimension D.
        max_tokens: captions are cut to this many tokens, special tokens included.
        trainable: True when the encoder is learned with the denoiser, False when it is frozen.
        truncated: how many captions have been cut so far, in this process.
        hidden_matrices: patterns of the names of matrices between the first and the last layer, which Muon may take.
    """

    hidden_matrices: tuple[str, ...] = ()

    def __init__(self, width: int, max_tokens: int, trainable: bool) -> None:
        super().__init__()
        self.width = width
        self.max_tokens = max_tokens
        self.trainable = trainable
        self.truncated = 0

    @property
    def pooled_width(self) -> int:
        """P, the width of the one vector per caption: that of the tokens, where a class does not say otherwise."""
        return self.width

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        """Encode captions. Long ones are cut to ``max_tokens``, counted in ``truncated``, warned of once."""

    @abstractmethod
    def count_tokens(self, caption: str) -> int:
        """The number of tokens of a caption, special tokens included, before any cut."""

    def tokenization(self) -> str:
        """A text that changes with how captions become tokens, beyond the settings; cached features depend on it."""
        return ""

    def freeze_pooled(self) -> None:
        """Stop training what is learned for ``pooled`` alone: the denoiser does not read it, so no gradient comes."""

    @override
    def forward(self, captions: Sequence[str]) -> TextEmbedding:
        return self.encode(captions)

    def check(self, prompt: str) -> None:
        """Refuse a prompt that would be cut.

        Raises:
            UserError: the prompt has more than ``max_tokens`` tokens.
        """
        count = self.count_tokens(prompt)
        if count > self.max_tokens:
            start = prompt if len(prompt) <= 40 else prompt[:40] + "..."
            raise UserError(
                f'prompt "{start}" has {count} tokens; this text encoder reads at most {self.max_tokens} '
                "(text_encoder.max_tokens, fixed when the model is trained). Shorten the prompt."
            )

    def _note_truncated(self, counts: Sequence[int]) -> None:
        cut = sum(count > self.max_tokens for count in counts)
        if cut and not self.truncated:
            log.warning(
                "%d of the %d captions of this batch cut to text_encoder.max_tokens=%d tokens "
                "(the longest has %d). Further cuts are counted, not shown.",
                cut,
                len(counts),
                self.max_tokens,
                max(counts),
            )
        self.truncated += cut


def token_mask(lengths: Sequence[int], device: torch.device | str = "cpu") -> Bool[Tensor, "B S"]:
    """The mask of real tokens of right-padded captions, S being the largest length."""
    positions = torch.arange(max(lengths))
    return (positions < torch.tensor(lengths)[:, None]).to(device, non_blocking=True)


def masked_mean(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """The mean over the real tokens of each caption."""
    weight = mask.to(tokens.dtype).unsqueeze(-1)  # (B, S, 1)
    return (tokens * weight).sum(1) / weight.sum(1)


def with_null(text: TextEmbedding, dropped: Bool[Tensor, "B"], null: TextEmbedding) -> TextEmbedding:
    """Encoded captions, float32, with those marked ``dropped`` replaced by the one caption of ``null``.

    The result is as long as its longest caption, as if the captions had been encoded together.
    """
    count = len(dropped)
    length = max(text.tokens.shape[1], null.tokens.shape[1])
    tokens, empty = (F.pad(part.tokens.float(), (0, 0, 0, length - part.tokens.shape[1])) for part in (text, null))
    mask, empty_mask = (F.pad(part.mask, (0, length - part.mask.shape[1])) for part in (text, null))
    there = dropped.to(mask.device, non_blocking=True)
    mask = torch.where(there[:, None], empty_mask.expand(count, -1), mask)
    tokens = torch.where(there[:, None, None], empty.expand(count, -1, -1), tokens)
    pooled = torch.where(there[:, None], null.pooled.float().expand(count, -1), text.pooled.float())
    lengths = _lengths(text, dropped, null)
    longest = int(mask.any(0).nonzero().max()) + 1 if lengths is None else max(lengths)
    return TextEmbedding(tokens[:, :longest], mask[:, :longest], pooled, lengths)


def _lengths(text: TextEmbedding, dropped: Bool[Tensor, "B"], null: TextEmbedding) -> tuple[int, ...] | None:
    if text.lengths is None or null.lengths is None or dropped.device.type != "cpu":
        return None
    return tuple(null.lengths[0] if drop else own for own, drop in zip(text.lengths, dropped.tolist(), strict=True))
