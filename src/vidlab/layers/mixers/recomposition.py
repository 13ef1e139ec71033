"""Re-composition: text and frames of several resolutions as one sequence that a causal mixer reads, and back.

M4V (arXiv 2506.10915), figure 2. A mixer such as a state space reads from left to right, so each frame is walked along
a scan path of its own grid behind a learned register, and the text stands at both ends, its padding outermost:

    [0 0 0 a b c d] [r f_0] [r f_1] ... [r f_i] [a b c d 0 0 0]
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.layers.mixers.scan_orders import ScanOrders, inverse

Tokens = Float[Tensor, "B L D"]


@dataclass(frozen=True)
class FrameGrids:
    """Frames in their order, each a token grid of its own, flattened row by row and laid end to end.

    Args:
        sizes: (rows, columns) of each frame.
        predicted: how many of the last frames are predicted; those before them are history.
    """

    sizes: tuple[tuple[int, int], ...]
    predicted: int

    @property
    def places(self) -> tuple[int, ...]:
        """Tokens of each frame."""
        return tuple(rows * columns for rows, columns in self.sizes)

    @property
    def tokens(self) -> int:
        """V, tokens of all frames."""
        return sum(self.places)

    @property
    def history(self) -> int:
        """How many frames are history."""
        return len(self.sizes) - self.predicted


def frame_of_token(frames: FrameGrids, device: torch.device | str | None = None) -> Int[Tensor, "V"]:
    """The number of the frame that each token belongs to."""
    numbers = [torch.full((places,), number, device=device) for number, places in enumerate(frames.places)]
    return torch.cat(numbers)


def scan_tables(
    frames: FrameGrids,
    registers: tuple[int, ...],
    bank: int,
    orders: ScanOrders,
    layers: int,
    device: torch.device | str | None = None,
) -> Int[Tensor, "layers R"]:
    """Where each position of the scanned frames comes from, in cat([register bank, tokens of the frames]).

    Args:
        frames: the grids.
        registers: the register of each frame, a row of the bank.
        bank: K, rows of the bank.
        orders: the scan paths.
        layers: for how many of the first layers.
        device: where to compute.
    """
    rows = []
    for layer in range(layers):
        walked = (bank + orders.order(layer, frames.sizes, device)).split(frames.places)
        pairs = zip(registers, walked, strict=True)
        rows.append(torch.cat([part for register, walk in pairs for part in (walk.new_full((1,), register), walk)]))
    return torch.stack(rows)


def unscan_tables(
    frames: FrameGrids, orders: ScanOrders, layers: int, device: torch.device | str | None = None
) -> Int[Tensor, "layers V"]:
    """The position in the scanned frames of each token, for each of the first layers; registers are passed over."""
    before = 1 + frame_of_token(frames, device)
    return torch.stack([before + inverse(orders.order(layer, frames.sizes, device)) for layer in range(layers)])


@dataclass(frozen=True)
class TextEnds:
    """The text at both ends of a sequence: Z_l with its padding moved left, Z_r with its padding moved right.

    Args:
        left: the slot that each position of Z_l shows.
        right: the slot that each position of Z_r shows; None leaves the right end out.
        left_back: the position in Z_l of each slot.
        right_back: the position in Z_r of each slot.
        mask: which slots are real.
    """

    left: Int[Tensor, "B S"]
    right: Int[Tensor, "B S"] | None
    left_back: Int[Tensor, "B S"]
    right_back: Int[Tensor, "B S"] | None
    mask: Bool[Tensor, "B S"]

    @property
    def slots(self) -> int:
        """S."""
        return self.mask.shape[1]


def text_ends(mask: Bool[Tensor, "B S"], both: bool = True) -> TextEnds:
    """Both ends of text of which ``mask`` says what is real; the real tokens of a row need not be its first.

    Args:
        mask: True at real tokens.
        both: False leaves out the right end, which reads all frames.
    """
    left = mask.byte().argsort(dim=1, stable=True)
    right = (~mask).byte().argsort(dim=1, stable=True) if both else None
    return TextEnds(left, right, left.argsort(dim=1), None if right is None else right.argsort(dim=1), mask)


@dataclass(frozen=True)
class Recomposition:
    """[text, frames] to the sequence of a scan, and back.

    Args:
        scan: a row of ``scan_tables``.
        unscan: a row of ``unscan_tables``.
        text: the ends; None without text.
    """

    scan: Int[Tensor, "R"]
    unscan: Int[Tensor, "V"]
    text: TextEnds | None

    def apply(self, x: Tokens, registers: Float[Tensor, "K D"]) -> Float[Tensor, "B long D"]:
        """S + R + S tokens from S + V: text, registers and frames, text."""
        slots = 0 if self.text is None else self.text.slots
        bank = registers.to(x.dtype).expand(len(x), -1, -1)  # (B, K, D)
        middle = torch.cat([bank, x[:, slots:]], dim=1).index_select(1, self.scan)  # (B, R, D)
        if self.text is None:
            return middle
        text, ends = x[:, :slots], self.text
        right = [] if ends.right is None else [_at(text, ends.right)]
        return torch.cat([_at(text, ends.left), middle, *right], dim=1)  # (B, S + R + S, D)

    def invert(self, y: Float[Tensor, "B long D"]) -> Tokens:
        """S + V tokens from S + R + S: Z' = Z'_l + Z'_r slot by slot, frames in order, registers dropped.

        So the inverse of ``apply`` gives the text twice and the frames once.
        """
        if self.text is None:
            return y.index_select(1, self.unscan)  # (B, V, D)
        slots, ends = self.text.slots, self.text
        text = _at(y[:, :slots], ends.left_back)  # (B, S, D)
        if ends.right_back is not None:
            text = text + _at(y[:, slots + len(self.scan) :], ends.right_back)
        return torch.cat([text, y.index_select(1, slots + self.unscan)], dim=1)  # (B, S + V, D)

    def real(self) -> Bool[Tensor, "B long"] | None:
        """False at the padding of the text; None without text."""
        if self.text is None:
            return None
        mask, ends = self.text.mask, self.text
        right = [] if ends.right is None else [mask.gather(1, ends.right)]
        return torch.cat([mask.gather(1, ends.left), mask.new_ones(len(mask), len(self.scan)), *right], dim=1)


def _at(text: Float[Tensor, "B S D"], index: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
    return text.gather(1, index[..., None].expand(-1, -1, text.shape[-1]))
