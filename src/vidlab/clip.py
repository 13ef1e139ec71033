"""What flows through vidlab: frozen records, from the data loader to the loss.

Axes, used in every file: ``B`` batch, ``C`` channels, ``T`` frames, ``H W`` space, ``L`` tokens, ``D`` width,
``N`` heads, ``S`` text tokens. A clip is ``(B, C, T, H, W)``; pixels are float32 in [-1, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vidlab.factors import Factors
from vidlab.features import Feature
from vidlab.features.memory import Memory
from vidlab.randomness import KeyedRNG
from vidlab.structure import Additions, StructureSignal

# The micro-condition that chooses the tokens a backbone leaves out in training: uniform numbers, (B, places).
TOKEN_DROP = "token_drop"
# The micro-condition that says whether a clip follows a picture that the backbone was given: 1 or 0, (B, 1).
IMAGE_PROMPT = "image_prompt"


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded captions: token features, which tokens are real, and one vector per caption.

    Every row of ``mask`` has at least one True entry, so attention over it is always defined.

    Args:
        tokens: features; zero where padded.
        mask: True at real tokens.
        pooled: one vector per caption.
        lengths: how many of the first tokens of each caption are real, the others being padding, where the host knows:
            reading it from the mask would wait for the device.
    """

    tokens: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B S"]
    pooled: Float[Tensor, "B P"]
    lengths: tuple[int, ...] | None = None

    @property
    def hidden(self) -> Bool[Tensor, "B S"] | None:
        """The mask for attention; None where every token is known to be real, so that faster kernels serve."""
        every = self.lengths is not None and min(self.lengths) == self.tokens.shape[1]
        return None if every else self.mask

    def to(self, device: torch.device | str) -> "TextEmbedding":
        """The same features on another device."""
        tokens, mask, pooled = (part.to(device, non_blocking=True) for part in (self.tokens, self.mask, self.pooled))
        return TextEmbedding(tokens, mask, pooled, self.lengths)

    def pin_memory(self) -> "TextEmbedding":
        """The same features in page-locked memory."""
        tokens, mask, pooled = (part.pin_memory() for part in (self.tokens, self.mask, self.pooled))
        return TextEmbedding(tokens, mask, pooled, self.lengths)


@dataclass(frozen=True)
class EncodedClips:
    """What an earlier run of the encoders made of a batch of clips, as stored: bfloat16.

    Args:
        mean: mean of the latents' distribution.
        log_variance: logarithm of its variance; None for an autoencoder without randomness.
        size: (frames, height, width) of the pixels that were encoded.
        text: encoded captions; None where the text encoder is learned and reads captions.
    """

    mean: Float[Tensor, "B C t h w"]
    log_variance: Float[Tensor, "B C t h w"] | None
    size: tuple[int, int, int]
    text: TextEmbedding | None = None

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.mean.device

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "EncodedClips":
        """The same on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking), self.text and self.text.to(device))

    def pin_memory(self) -> "EncodedClips":
        """The same in page-locked memory."""
        return self._each(lambda part: part.pin_memory(), self.text and self.text.pin_memory())

    def _each(self, move: Callable[[Tensor], Tensor], text: TextEmbedding | None) -> "EncodedClips":
        log_variance = None if self.log_variance is None else move(self.log_variance)
        return EncodedClips(move(self.mean), log_variance, self.size, text)


@dataclass(frozen=True)
class ClipBatch:
    """One planned batch of clips.

    Args:
        content: what was loaded: bytes from 0 to 255, as loading processes hand them over; pixels in [-1, 1]; or
            latents and text features from a cache.
        captions: one text per clip.
        keys: one clip key per clip, unique within a data set.
        epochs: the epoch each clip is visited in.
        number: the global batch number, which is what "step" means for data.
        fps: frames per second after frame sampling, one per clip.
        factors: the true factors of rendered clips, otherwise None.
        skipped: key and reason of each clip that could not be read and was replaced by another.
        micro: how each clip was cut, (B, n) by name: ``original_resolution`` (height, width of its file), ``crop``
            (top, left, in pixels after scaling), ``sampling_stride`` (source frames from one frame to the next).
        visits: how often each clip was visited earlier in its epoch; empty where none was.
    """

    content: UInt8[Tensor, "B 3 T H W"] | Float[Tensor, "B 3 T H W"] | EncodedClips
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    epochs: tuple[int, ...]
    number: int
    fps: tuple[float, ...]
    factors: tuple[Factors | None, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    micro: Mapping[str, Float[Tensor, "B _"]] = field(default_factory=dict)
    visits: tuple[int, ...] = ()

    @cached_property
    def pixels(self) -> Float[Tensor, "B 3 T H W"]:
        """The clips in [-1, 1]. Here bytes become pixels, on the device that they were moved to: 0 is -1, 255 is 1.

        Raises:
            ValueError: the clips come encoded.
        """
        if isinstance(self.content, EncodedClips):
            raise ValueError("encoded clips have no pixels")
        if self.content.dtype == torch.uint8:
            return self.content.float().div_(127.5).sub_(1.0)
        return self.content

    @property
    def encoded(self) -> EncodedClips | None:
        """The clips as they were encoded, where they come out of a cache."""
        return self.content if isinstance(self.content, EncodedClips) else None

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels."""
        if isinstance(self.content, EncodedClips):
            return self.content.size
        frames, height, width = self.content.shape[2:]
        return frames, height, width

    @property
    def strides(self) -> Float[Tensor, "B"] | None:
        """Source frames from one frame of each clip to the next; None where nobody has told."""
        told = self.micro.get("sampling_stride")
        return None if told is None else told.flatten()

    @property
    def device(self) -> torch.device:
        """Where its clips are."""
        return self.content.device

    def __len__(self) -> int:
        return len(self.keys)

    def draw(self, seed: int) -> KeyedRNG:
        """The random numbers of these visits of these clips, made where the batch is."""
        return KeyedRNG(seed, self.keys, self.epochs, self.device, self.visits, self.number)

    def to(self, device: torch.device | str) -> "ClipBatch":
        """The same batch with its clips on another device."""
        return replace(self, content=self.content.to(device, non_blocking=True))

    def pin_memory(self) -> "ClipBatch":
        """The same batch in page-locked memory; called by the data loader."""
        return replace(self, content=self.content.pin_memory())


@dataclass(frozen=True)
class LatentShape:
    """The latents a backbone is built for. Sizes are those of training; others are allowed where they divide."""

    channels: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Stride:
    """How many frames, rows and columns of pixels one latent position covers.

    With ``first_frame_alone``, as causal autoencoders have it, the first latent frame is the first frame, and only
    those after it cover ``frames`` frames each: 1 + f n frames give 1 + n.
    """

    frames: int
    height: int
    width: int
    first_frame_alone: bool = False


@dataclass(frozen=True)
class History:
    """Known latents that are not predicted, with their own resolution (pyramid flow, continuation)."""

    latents: Float[Tensor, "B C T H W"]
    frame_index: Int[Tensor, "T"]


@dataclass(frozen=True)
class Controls:
    """Extra input channels and the mask of what they make known."""

    channels: Float[Tensor, "B K T H W"]
    mask: Float[Tensor, "B 1 T H W"]


@dataclass(frozen=True)
class KnownLatents:
    """Latents that are given and take the place of noisy ones.

    Args:
        latents: clean latents; they count where the mask is 1.
        mask: 1 where the latents are given, 0 elsewhere.
        follows_image: what stands at given positions when guidance predicts without them: the given latents noised
            to the current level, or (False) latents denoised on their own.
    """

    latents: Float[Tensor, "B C T H W"]
    mask: Float[Tensor, "B 1 T #H #W"]
    follows_image: bool = False

    def put_into(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Replace latents where they are given."""
        return torch.where(self.mask > 0, self.latents.to(latents.dtype), latents)


@dataclass(frozen=True)
class Conditions:
    """Everything that conditions a denoiser besides the noisy latents and the noise level."""

    text: TextEmbedding | None = None
    known: KnownLatents | None = None
    history: tuple[History, ...] = ()
    controls: Controls | None = None
    micro: Mapping[str, Tensor] = field(default_factory=dict)
    structure: StructureSignal | None = None


@dataclass(frozen=True)
class DenoiserInput:
    """What a backbone reads.

    Args:
        latents: noisy latents (B, C, T, H, W).
        t: noise level in [0, 1], 0 is data and 1 is noise; one per clip (B,) or per latent frame (B, T).
        embedded_t: the number the schedule wants embedded for ``t``, same shape.
        text: encoded captions, or None for a backbone that takes no text.
        history: known latents, each with its own resolution.
        controls: extra input channels.
        micro: micro-conditions by name, such as the original resolution, each (B, ...).
        requested: names of the features to return besides the prediction.
        remembered: what ``VideoDenoiser.remember`` made of text and history, which are then not computed anew.
        structure: signals of edges and the like.
        additions: what is added to the tokens behind each block.
    """

    latents: Float[Tensor, "B C T H W"]
    t: Float[Tensor, "B"] | Float[Tensor, "B T"]
    embedded_t: Float[Tensor, "B"] | Float[Tensor, "B T"]
    text: TextEmbedding | None = None
    history: tuple[History, ...] = ()
    controls: Controls | None = None
    micro: Mapping[str, Tensor] = field(default_factory=dict)
    requested: frozenset[str] = frozenset()
    remembered: Memory | None = None
    structure: StructureSignal | None = None
    additions: Additions | None = None


@dataclass(frozen=True)
class DenoiserOutput:
    """A backbone's prediction, in the shape of its input latents, and exactly the requested features."""

    prediction: Float[Tensor, "B C T H W"]
    features: Mapping[str, Feature] = field(default_factory=dict)


@dataclass(frozen=True)
class LossContext:
    """What a regularizer may look at.

    Args:
        batch: the clips.
        input: what the denoiser read.
        output: what it answered.
        target: what the objective wanted.
        step: global number of the batch.
        draw: the clips' random numbers.
        latent: shape of the clips' latents, of which ``input`` may hold a part or a smaller copy.
        x0_of: the clean latents that a prediction implies, exactly converted by the objective.
        decode: latents to pixels, not clamped; gradients pass.
    """

    batch: ClipBatch
    input: DenoiserInput
    output: DenoiserOutput
    target: Float[Tensor, "B C T H W"]
    step: int
    draw: KeyedRNG
    latent: LatentShape
    x0_of: Callable[[DenoiserOutput, DenoiserInput], Float[Tensor, "B C T H W"]]
    decode: Callable[[Float[Tensor, "B C t h w"]], Float[Tensor, "B 3 T H W"]]

    @cached_property
    def x0(self) -> Float[Tensor, "B C T H W"]:
        """The clean latents that the prediction implies, float32, in its shape; converted once."""
        return self.x0_of(self.output, self.input)
