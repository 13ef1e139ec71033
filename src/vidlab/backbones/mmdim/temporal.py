"""The temporal branch of MM-DiM: causal attention among frames, of which each is one token."""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidlab.features.memory import Memory
from vidlab.layers.kernels import written_out
from vidlab.layers.mixers.recomposition import FrameGrids

Video = Float[Tensor, "B V D"]


@dataclass(frozen=True)
class Run:
    """Neighboring frames of one grid that are treated alike.

    Args:
        frames: how many.
        ratio: (rows, columns) of the grid to one of the coarsest.
        split: cut into sub-tokens, as predicted frames are; else brought to the coarsest grid by the mean.
    """

    frames: int
    ratio: tuple[int, int]
    split: bool

    @property
    def tokens(self) -> int:
        """Temporal tokens."""
        return self.frames * self.ratio[0] * self.ratio[1] if self.split else self.frames


@dataclass(frozen=True)
class TemporalGrids:
    """What the temporal branch knows of the frames; compared once for each pass, outside of what is compiled.

    Args:
        coarsest: (rows, columns) of the smallest grid.
        runs: frames in order, in runs of equal ones.
    """

    coarsest: tuple[int, int]
    runs: tuple[Run, ...]

    def part(self, split: bool) -> "TemporalGrids":
        """The predicted frames alone, or the history."""
        return TemporalGrids(self.coarsest, tuple(run for run in self.runs if run.split == split))

    @property
    def tokens(self) -> int:
        """Temporal tokens."""
        return sum(run.tokens for run in self.runs)


def temporal_grids(frames: FrameGrids) -> TemporalGrids:
    """Of frames.

    Raises:
        ValueError: as ``coarsest``.
    """
    return TemporalGrids(coarsest(frames), runs_of(frames))


def coarsest(frames: FrameGrids) -> tuple[int, int]:
    """(rows, columns) of the smallest grid.

    Raises:
        ValueError: another grid is not a whole multiple of it.
    """
    rows, columns = min(frames.sizes)
    for size in frames.sizes:
        if size[0] % rows or size[1] % columns:
            raise ValueError(
                f"frames of {size[0]}x{size[1]} and of {rows}x{columns} tokens in one video: the temporal branch needs "
                "grids that are whole multiples of the smallest"
            )
    return rows, columns


def runs_of(frames: FrameGrids) -> tuple[Run, ...]:
    """Frames in order, in runs of equal ones.

    Raises:
        ValueError: as ``coarsest``.
    """
    rows, columns = coarsest(frames)
    runs: list[Run] = []
    for number, size in enumerate(frames.sizes):
        one = Run(1, (size[0] // rows, size[1] // columns), number >= frames.history)
        if runs and (runs[-1].ratio, runs[-1].split) == (one.ratio, one.split):
            one = Run(runs.pop().frames + 1, one.ratio, one.split)
        runs.append(one)
    return tuple(runs)


def temporal_mask(frames: FrameGrids, device: torch.device | str | None = None) -> Bool[Tensor, "n n"]:
    """True where a temporal token may look: at those of its own and of earlier frames."""
    number, first = [], 0
    for run in runs_of(frames):
        each = run.tokens // run.frames
        number.append(torch.arange(first, first + run.frames, device=device).repeat_interleave(each))
        first += run.frames
    time = torch.cat(number)  # (n,): the frame of each temporal token
    return time[:, None] >= time


class TemporalBranch(nn.Module):
    """Causal attention among frames, each a token of all its places at the coarsest resolution at hand.

    M4V (arXiv 2506.10915), figure 2: history frames are brought to the coarsest grid, a predicted frame is cut into
    sub-tokens of that size by pixel unshuffling (as many as its ratio of places), so that nothing of it is averaged.
    Attention is over these few tokens; what comes out is put back, repeated over the places that were averaged, and
    sub-tokens in their places. The paper leaves the projections open. Here they are D x D per place, 4 D^2 weights, and
    a logit is the sum over a head's channels and all places, divided by sqrt(head width * places). Projections of whole
    frames would have billions of weights and fix the resolution.

    Args:
        width: D.
        heads: N.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, video: Video, grids: TemporalGrids, mask: Bool[Tensor, "n n"]) -> Video:
        """What to add to the tokens of the frames.

        Args:
            video: frames end to end.
            grids: theirs.
            mask: of ``temporal_mask``.
        """
        return self._among(video, grids, mask)[0]

    def remember(self, video: Video, grids: TemporalGrids, mask: Bool[Tensor, "n n"]) -> tuple[Video, Memory]:
        """What to add to the tokens of the history alone; and its keys and values."""
        known = grids.part(split=False)
        return self._among(video, known, mask[: known.tokens, : known.tokens])

    def resume(self, video: Video, grids: TemporalGrids, mask: Bool[Tensor, "n n"], memory: Memory) -> Video:
        """What to add to the tokens of the predicted frames, after a history of ``memory``."""
        new = grids.part(split=True)
        return self._among(video, new, mask[-new.tokens :], memory)[0]

    def _among(
        self, video: Video, grids: TemporalGrids, mask: Bool[Tensor, "n m"], memory: Memory | None = None
    ) -> tuple[Video, Memory]:
        (rows, columns), runs = grids.coarsest, grids.runs
        pieces = video.split([run.frames * rows * columns * run.ratio[0] * run.ratio[1] for run in runs], dim=1)
        folded = torch.cat([_fold(*pair, rows, columns) for pair in zip(pieces, runs, strict=True)], dim=1)
        q, k, v = self.qkv(folded).chunk(3, dim=-1)  # (B, n, places, D) each
        q, k, v = (rearrange(x, "b n p (h d) -> b n h (p d)", h=self.heads) for x in (q, k, v))
        if memory is not None:
            k, v = (torch.cat(pair, dim=1) for pair in zip(memory.tensors, (k, v), strict=True))  # (B, m, N, places d)
        # scaled by the width of its heads, here d times places, for which fused kernels are not made
        mixed = written_out(q, k, v, mask[None, None])
        mixed = self.out(rearrange(mixed, "b n h (p d) -> b n p (h d)", p=rows * columns))  # (B, n, places, D)
        back = zip(mixed.split([run.tokens for run in runs], dim=1), runs, strict=True)
        return torch.cat([_unfold(*pair, rows, columns) for pair in back], dim=1), Memory((k, v))


def _fold(video: Video, run: Run, rows: int, columns: int) -> Float[Tensor, "B n places D"]:
    p, q = run.ratio
    blocks = rearrange(video, "b (t h p w q) d -> b t p q (h w) d", t=run.frames, h=rows, w=columns, p=p, q=q)
    # n is t p q sub-tokens of predicted frames, and t means of the others
    return rearrange(blocks, "b t p q hw d -> b (t p q) hw d") if run.split else blocks.mean(dim=(2, 3))


def _unfold(tokens: Float[Tensor, "B n places D"], run: Run, rows: int, columns: int) -> Video:
    p, q = run.ratio
    if run.split:
        return rearrange(tokens, "b (t p q) (h w) d -> b (t h p w q) d", p=p, q=q, h=rows, w=columns)
    return repeat(tokens, "b t (h w) d -> b (t h p w q) d", p=p, q=q, h=rows, w=columns)
