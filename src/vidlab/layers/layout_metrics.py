"""What a set of token layouts reaches and costs: average attention distance and FLOPs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidlab.layers.layouts import Full3D, Grid, GroupSkip, SingleSkip, Spatial, Temporal, TokenLayout, Window


def group_ids(layout: TokenLayout, grid: Grid) -> Int[Tensor, "L"]:
    """The number of the group each token attends in, read off the layout's own partition."""
    places = torch.arange(1, grid.tokens + 1).view(1, -1, 1, 1)  # 0 is padding
    rows = layout.partition(places, grid)[..., 0].transpose(1, 2).flatten(0, 1)  # (groups, l)
    ids = torch.empty(grid.tokens + 1, dtype=torch.long)
    ids[rows] = torch.arange(len(rows))[:, None].expand_as(rows)
    return ids[1:]


def measured_distance(layouts: Sequence[TokenLayout], grid: Grid) -> float:
    """Average attention distance counted over the actual connectivity, for layouts that connect all tokens in two.

    The distance between two tokens is the least number of attentions, each within one of the layouts, that carries
    information from one to the other; 0 from a token to itself. The average runs over all L^2 ordered pairs
    (Open-Sora Plan v1.3, section 2.2.2). Tokens in the same group of every layout are counted once.

    Raises:
        ValueError: some pair needs more than two attentions.
    """
    ids = torch.stack([group_ids(layout, grid) for layout in layouts])  # (layouts, L)
    ids += torch.tensor([0, *(int(x.max()) + 1 for x in ids[:-1])]).cumsum(0)[:, None]  # one numbering of all groups
    kinds, counts = torch.unique(ids, dim=1, return_counts=True)  # (layouts, kinds), (kinds,)
    changes = _changes_between_groups(kinds)
    counts = counts.float()
    total = 0.0
    for kind, count in zip(kinds.unbind(1), counts.tolist(), strict=True):
        from_here = changes[kind].amin(0)  # (groups,)
        distances = 1 + reduce(torch.minimum, (from_here[ids] for ids in kinds))  # (kinds,)
        total += count * (float(distances.float() @ counts) - 1)  # a token is not one attention from itself
    if total >= _UNREACHED:
        raise ValueError("some tokens are more than two attentions apart, or never reach each other")
    return total / grid.tokens**2


_UNREACHED = 1e18


def _changes_between_groups(kinds: Int[Tensor, "layouts kinds"]) -> Float[Tensor, "groups groups"]:
    """0 from a group to itself, 1 between groups that share a token."""
    groups = int(kinds.max()) + 1
    changes = torch.full((groups, groups), _UNREACHED)
    for a, b in itertools.product(kinds, repeat=2):
        changes[a, b] = 1
    return changes.fill_diagonal_(0)


def closed_form_distance(layouts: Sequence[TokenLayout], grid: Grid) -> float:
    """Average attention distance of the known pairs, 2 - (n + 2) / L with n tokens at distance one.

    Full 3D: n = L - 1. 2+1D: n = S + T - 2. Skip + window: n = L / k + k - 2. Skiparse: n = 2 L / k - L / k^2 - 1
    (Open-Sora Plan v1.3, eqs. 8-10; its Table 1 misprints skip + window).

    Raises:
        ValueError: another set of layouts, or a length that would be padded; use ``measured_distance``.
    """
    tokens = grid.tokens
    if any(layout.padded(grid) != tokens for layout in layouts):
        raise ValueError(f"the closed form needs {tokens} tokens to divide without padding; use measured_distance")
    near = _tokens_at_distance_one(frozenset(layouts), grid)
    return 2 - (near + 2) / tokens


def _tokens_at_distance_one(layouts: frozenset[TokenLayout], grid: Grid) -> float:
    if Full3D() in layouts:
        return grid.tokens - 1
    if layouts == {Spatial(), Temporal()}:
        return grid.places + grid.frames - 2  # eq. 8
    skips = {layout.k for layout in layouts if isinstance(layout, SingleSkip | GroupSkip)}
    if len(skips) == 1 and len(layouts) == 2:
        (k,) = skips
        if layouts == {SingleSkip(k), GroupSkip(k)} and grid.tokens % k**2 == 0:
            return 2 * grid.tokens / k - grid.tokens / k**2 - 1  # eq. 10
        if layouts == {SingleSkip(k), Window(k)}:
            return grid.tokens / k + k - 2  # eq. 9
    raise ValueError("no closed form is known for these layouts; use measured_distance")


@dataclass(frozen=True)
class LayoutRow:
    """One line of the comparison: a named cycle of layouts on one grid."""

    name: str
    layouts: tuple[TokenLayout, ...]

    def line(self, grid: Grid) -> str:
        """Name, distances, tokens per call and attention FLOPs relative to full 3D."""
        full = Full3D().attention_flops(grid, 1)
        share = sum(layout.attention_flops(grid, 1) for layout in self.layouts) / len(self.layouts) / full
        lengths = "/".join(str(layout.sequence_length(grid)) for layout in self.layouts)
        try:
            closed = f"{closed_form_distance(self.layouts, grid):.3f}"
        except ValueError:
            closed = "-"
        return f"{self.name:<18}{closed:>12}{measured_distance(self.layouts, grid):>12.3f}{lengths:>16}{share:>12.4f}"


def comparison() -> tuple[LayoutRow, ...]:
    """The attention kinds of Open-Sora Plan v1.3, Table 2."""
    rows = [LayoutRow("full 3D", (Full3D(),)), LayoutRow("2+1D", (Spatial(), Temporal()))]
    rows += [LayoutRow(f"skip+window k={k}", (SingleSkip(k), Window(k))) for k in (2, 4, 8)]
    rows += [LayoutRow(f"Skiparse k={k}", (SingleSkip(k), GroupSkip(k))) for k in (2, 4, 8)]
    return tuple(rows)
