"""Structure signals as a condition, beside frames that are known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from typing_extensions import override

from vidlab.clip import LatentShape, Stride
from vidlab.conditioning.base import (
    Conditioning,
    FrameConditions,
    FrameEncoder,
    Frames,
    MakeDenoiser,
    NoConditioning,
    Pixels,
    TrainingClips,
)
from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import UserError
from vidlab.factors import Factors
from vidlab.randomness import KeyedRNG
from vidlab.structure import StructureSignal

PATTERNS = ("all", "some", "first", "none")


@dataclass(frozen=True)
class StructureConditioning(Conditioning):
    """Tells a model the structure of frames: of all, some or one of them (Open-Sora Plan, section 2.3.2).

    Args:
        signals: what is told, by name, such as canny and depth; several at once are told side by side.
        controller: makes a denoiser that reads them, given ``backbone``, ``channels`` and ``stride``: see
            ``vidlab.backbones.structure``.
        frames: what else is known of a clip: nothing, or as frame replacement and masked video have it.
        given: how often, in training, a signal is given of ``all`` frames, of ``some`` (each by chance, at a rate drawn
            per clip), of the ``first``, of ``none``; normalized. Drawn for each clip and signal apart.

    Raises:
        UserError: no signal, shares out of range, or ``frames`` that tell structure too.
    """

    signals: Mapping[str, SignalExtractor]
    controller: Callable[..., object]
    frames: Conditioning = field(default_factory=NoConditioning)
    given: Mapping[str, float] = field(default_factory=lambda: {"all": 0.6, "some": 0.2, "first": 0.1, "none": 0.1})

    def __post_init__(self) -> None:
        if not self.signals:
            raise UserError(
                "conditioning=structure tells nothing: add structure=canny, or several, structure=[canny,hed]."
            )
        if self.frames.tells_structure:
            raise UserError(
                "conditioning.frames tells structure again: name all signals at once, structure=[canny,hed], and leave "
                "conditioning.frames to frame_replacement, masked_video or none."
            )
        unknown = set(self.given) - set(PATTERNS)
        if unknown or min(self.given.values(), default=0) < 0 or sum(self.given.values()) <= 0:
            raise UserError(
                f"conditioning.given={dict(self.given)}: shares of {', '.join(PATTERNS)}, 0 or more, one above 0."
            )

    @property
    def takes_frames(self) -> bool:
        """That of ``frames``."""
        return self.frames.takes_frames

    @property
    @override
    def tells_structure(self) -> bool:
        return True

    @property
    def reads_pixels(self) -> bool:
        """Signals are taken from pixels."""
        return True

    @override
    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        return self.frames.control_channels(latent, stride)

    @override
    def default_num_frames(self, frames: int) -> int:
        return self.frames.default_num_frames(frames)

    @override
    def gives_all(self, latent_frames: int) -> bool:
        return self.frames.gives_all(latent_frames)

    @override
    def for_inference(self, pixels: Pixels, frames: Frames, encoder: FrameEncoder) -> FrameConditions:
        return self.frames.for_inference(pixels, frames, encoder)

    @override
    def made_to_read(self, backbone: MakeDenoiser, stride: Stride) -> MakeDenoiser:
        return partial(self.controller, backbone=backbone, channels=self.channels, stride=stride)

    @property
    def channels(self) -> int:
        """Of ``StructureSignal.maps``: those of all signals, and one more for each."""
        return sum(signal.channels + 1 for signal in self.signals.values())

    @override
    def for_training(self, clips: TrainingClips, encoder: FrameEncoder) -> FrameConditions:
        """What ``frames`` gives, and the signals of a drawn pattern of frames.

        Raises:
            ValueError: clips without pixels.
        """
        pixels = clips.pixels
        if pixels is None:
            raise ValueError("structure signals are taken from the pixels of the clips")
        known = self.frames.for_training(clips, encoder)
        given = {name: self.drawn_frames(name, pixels.shape[2], clips.draw).to(pixels.device) for name in self.signals}
        return replace(known, structure=self.signal(SourceClips(pixels, clips.factors), given))

    @override
    def whole_structure(self, pixels: Pixels, factors: Sequence[Factors | None] = ()) -> StructureSignal:
        every = torch.ones(len(pixels), pixels.shape[2], dtype=torch.bool, device=pixels.device)
        return self.signal(SourceClips(pixels, factors), dict.fromkeys(self.signals, every))

    def drawn_frames(self, name: str, count: int, draw: KeyedRNG) -> Frames:
        """True at the frames of each clip of which a signal is given in training."""
        u = draw.uniform(f"structure_{name}")[:, None]  # (B, 1)
        rate = draw.uniform(f"structure_rate_{name}")[:, None]
        chosen = draw.uniform(f"structure_frames_{name}", (count,)) < rate  # (B, T)
        first = torch.arange(count, device=u.device)[None] == 0
        shares = [self.given.get(pattern, 0.0) for pattern in PATTERNS]
        ends = [sum(shares[: n + 1]) / sum(shares) for n in range(len(shares))]
        pattern = torch.bucketize(u, u.new_tensor(ends[:-1]), right=True)  # (B, 1), a number of PATTERNS
        options = [torch.ones_like(chosen), chosen, first.expand_as(chosen), torch.zeros_like(chosen)]
        return torch.stack(options).gather(0, pattern[None].expand(1, *chosen.shape))[0]  # (B, T)

    @torch.no_grad()
    def signal(
        self,
        clips: SourceClips,
        given: Mapping[str, Frames],
        extractors: Mapping[str, SignalExtractor] | None = None,
    ) -> StructureSignal:
        """The signals of clips as a model reads them.

        Args:
            clips: whose structure is told.
            given: by name, True at frames of which a signal is given; a name that is absent is not given at all.
            extractors: in place of some of ``signals``, by their names.
        """
        parts = []
        for name, usual in self.signals.items():
            extractor = (extractors or {}).get(name, usual)
            pixels = clips.pixels
            frames = given.get(name)
            if frames is None:
                parts.append(pixels.new_zeros(len(pixels), usual.channels + 1, *pixels.shape[2:]))
                continue
            told = frames[:, None, :, None, None].to(pixels.dtype).expand(-1, 1, -1, *pixels.shape[3:])
            parts += [extractor.extract(clips).to(pixels.dtype) * told, told]  # (B, c, T, H, W), (B, 1, T, H, W)
        return StructureSignal(torch.cat(parts, dim=1))
