"""Small networks whose tokens several processes share, and how far they are from the same network on one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidlab.backbones.base import VideoDenoiser
from vidlab.backbones.dit import DiT
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.stiv import STIV
from vidlab.clip import TOKEN_DROP, DenoiserInput, History, LatentShape, TextEmbedding
from vidlab.cost.exchange import exchange_by_layer
from vidlab.features import SELF_ATTENTION
from vidlab.layers.layouts import Full3D, Grid, GroupSkip, LayerPlan, SingleSkip, Spatial, Temporal, TokenLayout, Window
from vidlab.parallel.exchange import Team

LATENT = LatentShape(3, 5, 6, 4)  # 120 tokens in patches of one; nothing divides by 2 and 4 at once
WIDTH, HEADS, TEXT, CLIPS = 36, 3, 10, 2


@dataclass(frozen=True)
class Case:
    """A network, what it reads, and in which numbers."""

    name: str
    build: Callable[[], VideoDenoiser]
    per_frame_t: bool = False
    history: bool = False
    requested: bool = False
    frames: int = LATENT.frames
    dtype: torch.dtype = torch.float64
    uncounted: bool = False


def dit(*cycle: TokenLayout, full: int = 0, qk_norm: bool = False, **settings: Any) -> Callable[[], VideoDenoiser]:
    """Without norms of queries and keys, whose gains are summed in float32."""
    plan = LayerPlan(cycle, full_first=full, full_last=full)
    return lambda: DiT(LATENT, TEXT, plan, WIDTH, 4, HEADS, (1, 1, 1), qk_norm=qk_norm, **settings)


def open_sora_plan() -> VideoDenoiser:
    plan = LayerPlan((SingleSkip(4), GroupSkip(4)), full_first=1, full_last=1)
    return OpenSoraPlan(LATENT, TEXT, plan, WIDTH, 4, HEADS, (1, 2, 2))


def stiv(**settings: Any) -> Callable[[], VideoDenoiser]:
    return lambda: STIV(LATENT, TEXT, WIDTH, 3, HEADS, (1, 1, 2), qk_norm=False, **settings)


SKIPARSE = (SingleSkip(4), GroupSkip(4))
MASKED = stiv(mask_ratio=0.4, unmask_blocks=1, temporal_modulation=True)
CASES = (
    Case("full3d", dit(Full3D())),
    Case("skiparse", dit(*SKIPARSE, full=1)),
    Case("skiparse float32", dit(*SKIPARSE, full=1, qk_norm=True), dtype=torch.float32),
    Case("skiparse padded", dit(SingleSkip(7), GroupSkip(7))),
    Case("skip window", dit(SingleSkip(4), Window(9))),
    Case("2p1d", dit(Spatial(), Temporal()), per_frame_t=True),
    Case("few groups", dit(SingleSkip(2), GroupSkip(2))),
    Case("recomputed", dit(Spatial(), Temporal(), activation_checkpointing=True)),
    Case("self attention", dit(Spatial(), Full3D()), requested=True),
    Case("history", dit(Full3D()), history=True, uncounted=True),
    Case("open sora plan", open_sora_plan),
    Case("stiv", MASKED, per_frame_t=True, requested=True, uncounted=True),
    Case("stiv causal", stiv(causal_temporal=True)),
    Case("stiv recomputed", stiv(activation_checkpointing=True)),
    Case("stiv image", stiv(), frames=1, uncounted=True),
)


def trained(case: Case) -> VideoDenoiser:
    torch.manual_seed(0)
    network = case.build().to(case.dtype).train()
    with torch.no_grad():  # closed gates and zero heads would hide what lies behind them
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def read(case: Case, clips: int = CLIPS) -> DenoiserInput:
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(case.dtype)

    c, t, h, w = LATENT.channels, case.frames, LATENT.height, LATENT.width
    mask = torch.ones(clips, 7, dtype=torch.bool)
    mask[-1, 4:] = False
    text = TextEmbedding(normal(clips, 7, TEXT), mask, normal(clips, TEXT))
    levels = normal(clips, t).sigmoid() if case.per_frame_t else normal(clips).sigmoid()
    found = DenoiserInput(normal(clips, c, t, h, w), levels, levels, text)
    if case.history:
        found = replace(
            found,
            latents=found.latents[:, :, :2],
            history=(History(normal(clips, c, 1, h, w // 2), torch.tensor([0])),),
        )
    requested = frozenset({SELF_ATTENTION}) if case.requested else frozenset()
    token_drop = torch.rand(clips, h * w // 2, generator=source)
    return replace(found, requested=requested, micro={TOKEN_DROP: token_drop})


def loss_of(network: VideoDenoiser, case: Case) -> Tensor:
    output = network(read(case))
    weights = torch.linspace(-1, 1, output.prediction.numel(), dtype=case.dtype).view_as(output.prediction)
    loss = (output.prediction * weights).sum() + output.prediction.square().mean()
    for layers in output.features.values():
        for layer in layers:
            loss = loss + (layer.q * layer.k).square().mean()
    return loss


class CountedExchange:
    """Numbers that this process sends others by ``all_to_all_single`` inside the block."""

    def __init__(self, team: Team) -> None:
        self.sent, self._rank, self._plain = 0, team.rank, dist.all_to_all_single

    def __call__(self, out: Tensor, x: Tensor, received: list[int], sent: list[int], group: Any) -> None:
        others = sum(sent) - sent[self._rank]
        self.sent += others * (x.numel() // len(x) if len(x) else 0)
        self._plain(out, x, received, sent, group=group)

    def __enter__(self) -> "CountedExchange":
        dist.all_to_all_single = self
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_to_all_single = self._plain


def errors_of(case: Case, team: Team) -> tuple[float, float, int, int]:
    """What sharing a clip changes.

    Returns:
        The error of the loss, relative; that of the gradients averaged over processes, relative to the largest one;
        the numbers that all processes have sent; and the numbers that the cost model says.
    """
    alone, shared = trained(case), trained(case)
    shared.share_sequence(team)
    expected = loss_of(alone, case)
    expected.backward()
    with CountedExchange(team) as counted:
        found = loss_of(shared, case)
        found.backward()
    sent = torch.tensor(counted.sent)
    dist.all_reduce(sent)
    wrong, largest = 0.0, 0.0
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None
            continue
        assert b.grad is not None
        dist.all_reduce(b.grad)
        wrong = max(wrong, (b.grad / dist.get_world_size() - a.grad).abs().max().item())
        largest = max(largest, a.grad.abs().max().item())
    return abs((found - expected) / expected).item(), wrong / largest, int(sent), CLIPS * planned(case, shared, team)


def planned(case: Case, network: VideoDenoiser, team: Team) -> int:
    latents, (p, q, r) = read(case).latents, network.spec.patch
    grid = Grid(latents.shape[2] // p, latents.shape[3] // q, latents.shape[4] // r)
    layers = exchange_by_layer(network.sequence_layers(), grid, team.size, bool(network.activation_checkpointing))
    return sum(layer.moved + layer.shared for layer in layers)
