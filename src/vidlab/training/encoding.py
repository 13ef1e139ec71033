"""What a training step learns from: latents and text features of a batch, encoded now or read from a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.autoencoders.base import Autoencoder, Posterior
from vidlab.clip import ClipBatch, TextEmbedding
from vidlab.cost.flops import encoder_flops
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
    _flops: dict[object, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _null_of: dict[torch.device, TextEmbedding] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.text_dropout <= 1:
            raise UserError(f"task.text_dropout={self.text_dropout} must lie in [0, 1].")
        if self.latents not in ("sample", "mode"):
            raise UserError(f"task.latents={self.latents}: choose sample or mode.")

    @property
    def planned_text_tokens(self) -> int:
        """Tokens of a caption in plans that are made before one has been seen."""
        return min(PLANNED_TEXT_TOKENS, self.text_encoder.max_tokens)

    def flops_of(self, batch: ClipBatch, text_tokens: int) -> dict[str, int]:
        """FLOPs of encoding a training batch, by what encodes; 0 where its content is read from a cache.

        The autoencoder is counted. The text encoder is reckoned at two operations for each parameter outside its tables
        and each token, and three times that where it is trained.
        """
        clips, text = len(batch), 0
        latents = (
            0 if batch.encoded else clips * self._once(batch.size, lambda: encoder_flops(self.autoencoder, *batch.size))
        )
        if batch.encoded is None or batch.encoded.text is None:
            each = self._once("text", lambda: 2 * _parameters_per_token(self.text_encoder))
            text = clips * text_tokens * each
        return {"autoencoder_flops": latents, "text_encoder_flops": text * (3 if self.text_encoder.trainable else 1)}

    def _once(self, what: object, count: Callable[[], int]) -> int:
        if what not in self._flops:
            self._flops[what] = count()
        return self._flops[what]

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
        dropped = draw.on_host.uniform("text_dropout") < self.text_dropout
        return with_null(batch.encoded.text, dropped, self._null(batch.encoded.text.tokens.device))

    def _null(self, device: torch.device) -> TextEmbedding:
        """The null prompt; of a frozen encoder it is encoded once."""
        if self.text_encoder.trainable:
            return self.text_encoder([""])
        if device not in self._null_of:
            self._null_of[device] = self.text_encoder([""]).to(device)
        return self._null_of[device]

    def dropped_captions(self, captions: Sequence[str], draw: KeyedRNG) -> list[str]:
        """Captions with a keyed share replaced by the null prompt (purpose "text_dropout")."""
        dropped = (draw.on_host.uniform("text_dropout") < self.text_dropout).tolist()
        return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]


def _parameters_per_token(encoder: TextEncoder) -> int:
    tables = {id(one.weight) for one in encoder.modules() if isinstance(one, nn.Embedding)}
    return sum(one.numel() for one in encoder.parameters() if one.ndim > 1 and id(one) not in tables)
