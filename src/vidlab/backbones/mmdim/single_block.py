"""The single-stream MM-DiM block: a causal mixer over text and frames of several resolutions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.backbones.mmdim.conditions import at_places
from vidlab.backbones.mmdim.temporal import TemporalBranch, TemporalGrids
from vidlab.features.memory import Memory
from vidlab.layers.attention import xavier_linears, zero_init
from vidlab.layers.mixers.mixer import MixerKernels, ResumableMixer
from vidlab.layers.mixers.recomposition import Recomposition, TextEnds
from vidlab.layers.modulation import add_gated, modulate

REGISTER_STD = 0.02


@dataclass(frozen=True)
class SingleBlockContext:
    """What every single-stream block of one forward pass shares.

    Args:
        grids: of the frames, for the temporal branch; None where there is none.
        text: both ends of the text, or None.
        scans: of ``scan_tables``.
        unscans: of ``unscan_tables``.
        temporal_mask: of the temporal branch; None where there is none.
        condition: activated condition of [text, frames].
        places: which row of it each token reads; None where it has one for each or for all.
    """

    grids: TemporalGrids | None
    text: TextEnds | None
    scans: Int[Tensor, "paths R"]
    unscans: Int[Tensor, "paths V"]
    temporal_mask: Bool[Tensor, "n n"] | None
    condition: Float[Tensor, "B _ D"]
    places: Int[Tensor, "L"] | None = None

    @property
    def slots(self) -> int:
        """Slots of the text."""
        return 0 if self.text is None else self.text.slots

    def of_layer(self, layer: int) -> "SingleBlockContext":
        """What a layer reads: scan paths take turns. Given its number, each layer would be compiled anew."""
        path = slice(layer % len(self.scans), layer % len(self.scans) + 1)
        return replace(self, scans=self.scans[path], unscans=self.unscans[path])

    def recomposition(self) -> Recomposition:
        """That of the first path."""
        return Recomposition(self.scans[0], self.unscans[0], self.text)


class MMDiMBlock(nn.Module):
    """The single-stream block of FLUX with its attention replaced by a causal mixer (M4V, figure 2).

    U = (1 + scale) LN(X) + shift feeds three branches: M = GELU(W U); Y = mixer(R) on the re-composed sequence R, put
    back into place; and the temporal branch on the frames, added to Y. Then X + gate W' [Y, M]. 12 D^2 weights besides
    the mixer's, which are 3 D^2 for attention and 4 D^2 for SSD, and 4 D^2 more with the temporal branch. The gate
    starts at zero, so a new block is the identity. Figure 2 draws no output projection of the mixer, and FLUX has none.

    Args:
        width: D.
        heads: N.
        mlp_ratio: hidden width of the feed-forward over D.
        mixer: makes the mixer.
        kernels: what the mixer may choose from.
        temporal: whether there is a temporal branch.
        registers: rows of learned tokens, one of which precedes each frame.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, mixer: Callable[..., nn.Module],
        kernels: MixerKernels, temporal: bool, registers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"))
        self.mixer = mixer(width, heads, kernels)
        self.temporal = TemporalBranch(width, heads) if temporal else None
        self.registers = nn.Parameter(torch.empty(registers, width))
        self.out = nn.Linear(width + hidden, width)

    def reset_parameters(self) -> None:
        """Xavier linears, a closed gate, small registers; the mixer keeps the start it gave itself."""
        for part in (self.mlp, self.temporal, self.out):
            if part is not None:
                xavier_linears(part)
        zero_init(self.modulation)
        nn.init.normal_(self.registers, std=REGISTER_STD)

    def forward(self, x: Float[Tensor, "B L D"], context: SingleBlockContext) -> Float[Tensor, "B L D"]:
        """One block on [text, frames]."""
        u, gate = self._modulated(x, context)
        y = self.mix(u, context.recomposition())
        if self.temporal is not None and context.grids is not None and context.temporal_mask is not None:
            moved = self.temporal(u[:, context.slots :], context.grids, context.temporal_mask)  # (B, V, D)
            y = y + F.pad(moved, (0, 0, context.slots, 0))
        return self._added(x, u, y, gate)

    def remember(self, x: Float[Tensor, "B L D"], context: SingleBlockContext) -> tuple[Tensor, Memory]:
        """One block on [text, history]; and what the predicted frames need of it.

        Args:
            x: text and the frames of the history.
            context: of a scan of the history; ``grids`` are those of all frames.
        """
        u, gate = self._modulated(x, context)
        recomposition = context.recomposition()
        mixed, memory = self._resumable().remember(recomposition.apply(u, self.registers), recomposition.real())
        y, parts = recomposition.invert(mixed), [memory]
        if self.temporal is not None and context.grids is not None and context.temporal_mask is not None:
            moved, memory = self.temporal.remember(u[:, context.slots :], context.grids, context.temporal_mask)
            y = y + F.pad(moved, (0, 0, context.slots, 0))
            parts.append(memory)
        return self._added(x, u, y, gate), Memory(parts=tuple(parts))

    def resume(self, x: Float[Tensor, "B P D"], context: SingleBlockContext, memory: Memory) -> Float[Tensor, "B P D"]:
        """One block on the predicted frames after a history of ``memory``."""
        u, gate = self._modulated(x, context)
        recomposition = context.recomposition()
        mixed = self._resumable().resume(recomposition.apply(u, self.registers), memory.parts[0])
        y = recomposition.invert(mixed)
        if self.temporal is not None and context.grids is not None and context.temporal_mask is not None:
            y = y + self.temporal.resume(u, context.grids, context.temporal_mask, memory.parts[1])
        return self._added(x, u, y, gate)

    def _modulated(self, x: Tensor, context: SingleBlockContext) -> tuple[Tensor, Tensor]:
        parts = at_places(self.modulation(context.condition), context.places)
        shift, scale, gate = parts.chunk(3, dim=-1)  # (B, 1 or L, D) each
        return modulate(x, shift, scale), gate

    def _added(self, x: Tensor, u: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        joined = torch.cat([y, self.mlp(u)], dim=-1)  # [Y, M]: (B, L, D + hidden)
        return add_gated(x, gate, self.out(joined))

    def _resumable(self) -> ResumableMixer:
        assert isinstance(self.mixer, ResumableMixer)
        return self.mixer

    def mix(self, u: Float[Tensor, "B L D"], recomposition: Recomposition) -> Float[Tensor, "B L D"]:
        """The main path: re-compose, mix, put back."""
        sequence = recomposition.apply(u, self.registers)  # (B, S + R + S, D)
        return recomposition.invert(self.mixer(sequence, recomposition.real()))
