"""What a training step learns from: latents and text features of a batch, encoded now or read from a cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.base import Autoencoder, Posterior
from vidlab.clip import ClipBatch, TextEmbedding
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG
from vidlab.text.base import TextEncoder, with_null

PLANNED_TEXT_TOKENS = 16


@dataclass(frozen=True)
class TrainingEncoders:
    """Encodes training clips and their captions, a share of which is replaced by the null prompt "".

    Args:
        autoencoder: pixels to latents; frozen.
        text_encoder: captions to features.
        latents: of an autoencoder with a variance: ``sample`` draws from its distribution, ``mode`` takes the most
            likely.
        text_dropout: share of clips whose caption is replaced, in [0, 1].

    Raises:
        UserError: an argument out of range.
    """

    autoencoder: Autoencoder
    text_encoder: TextEncoder
    latents: str
    text_dropout: float

    def __post_init__(self) -> None:
        if not 0 <= self.text_dropout <= 1:
            raise UserError(f"task.text_dropout={self.text_dropout} must lie in [0, 1].")
        if self.latents not in ("sample", "mode"):
            raise UserError(f"task.latents={self.latents}: choose sample or mode.")

    @property
    def planned_text_tokens(self) -> int:
        """Tokens of a caption in plans that are made before one has been seen."""
        return min(PLANNED_TEXT_TOKENS, self.text_encoder.max_tokens)

    @torch.no_grad()
    def latents_of(self, batch: ClipBatch, draw: KeyedRNG) -> Float[Tensor, "B C t h w"]:
        """Latents of training clips; a variance is drawn from by key (purpose "posterior")."""
        if batch.encoded is None:
            posterior = self.autoencoder.posterior(batch.pixels)
        else:
            log_variance = batch.encoded.log_variance
            posterior = Posterior(batch.encoded.mean.float(), None if log_variance is None else log_variance.float())
        if posterior.log_variance is None or self.latents == "mode":
            return posterior.mode
        return posterior.sample(draw.normal("posterior", tuple(posterior.mean.shape[1:])).to(posterior.mean))

    def text_of(self, batch: ClipBatch, draw: KeyedRNG) -> TextEmbedding:
        """Features of training captions, a keyed share of them those of the null prompt."""
        if batch.encoded is None or batch.encoded.text is None:
            return self.text_encoder(self.dropped_captions(batch.captions, draw))
        dropped = draw.uniform("text_dropout") < self.text_dropout
        return with_null(batch.encoded.text, dropped, self.text_encoder([""]))

    def dropped_captions(self, captions: Sequence[str], draw: KeyedRNG) -> list[str]:
        """Captions with a keyed share replaced by the null prompt (purpose "text_dropout")."""
        dropped = (draw.uniform("text_dropout") < self.text_dropout).tolist()
        return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
