"""Activation offload changes no bit, moves each block of memory once and no weight, and leaves what is small."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vidlab.backbones.dit import DiT
from vidlab.clip import DenoiserInput
from vidlab.cost.memory import MemoryTracker
from vidlab.layers.compilation.offloading import ActivationOffload

KINDS = ("none", "block", "selective")


class Watched(ActivationOffload):
    """Notes the sizes that were moved, and how often one returned."""

    def __init__(self, smallest: int = 1) -> None:
        super().__init__(smallest, pinned=False)
        self.moved: list[int] = []
        self.returned = 0

    def away(self, block):
        self.moved.append(block.numel())
        return super().away(block)

    def back(self, kept, device):
        self.returned += 1
        return super().back(kept, device)


@pytest.fixture
def step(make_dit: Callable[..., DiT], make_text, latent) -> Callable[..., list[torch.Tensor]]:
    def run(kind: str, bf16: bool, offload: ActivationOffload | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = make_dit(activation_checkpointing=kind).train()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        latents, t = torch.randn(2, latent.channels, latent.frames, latent.height, latent.width), torch.rand(2)
        context = offload.forward(model) if offload else torch.enable_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), context:
            loss = model(DenoiserInput(latents, t, t, make_text())).prediction.square().mean()
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return run


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_without_it(step, kind, bf16):
    offload = Watched()
    assert all(torch.equal(a, b) for a, b in zip(step(kind, bf16, None), step(kind, bf16, offload), strict=True))
    assert offload.moved and offload.returned


def test_what_is_moved_leaves_the_device(step):
    class Gone(ActivationOffload):
        def away(self, block):
            return block.numel(), block.dtype

        def back(self, kept, device):
            return torch.zeros(kept[0], dtype=kept[1])

    peaks = []
    for offload in (None, Gone(1, pinned=False)):
        with MemoryTracker() as tracker:
            step("none", False, offload)
        peaks.append(tracker.peak)
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_views_are_moved_once_with_their_memory_and_weights_never(bf16):
    layer, offload = nn.Linear(8, 24), Watched()
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), offload.forward(layer):
        q, k, v = layer(x).chunk(3, dim=-1)  # three views of 120 numbers
        out = (q * k * v).exp()
    assert offload.moved.count(120) == 1 and 8 * 24 not in offload.moved
    out.sum().backward()
    plain = x.grad.clone()
    x.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        q, k, v = layer(x).chunk(3, dim=-1)
        (q * k * v).exp().sum().backward()
    assert torch.equal(x.grad, plain)


def test_a_block_changed_in_place_is_kept_as_it_was_and_strides_return():
    x, offload = torch.arange(12.0).reshape(3, 4).requires_grad_(), Watched()
    with offload.forward(nn.Identity()):
        y = x * 2
        first = y.t().pow(2)  # keeps y, transposed
        y = y.add_(1)
        second = y.pow(3)
    held = first.grad_fn._saved_self
    assert held.stride() == (1, 4) and torch.equal(held, (x * 2).t())
    second.sum().backward()
    assert torch.equal(x.grad, 6 * (2 * x.detach() + 1) ** 2)


def test_small_blocks_stay():
    offload = Watched(smallest=4 * 100)
    x = torch.randn(99, requires_grad=True)
    with offload.forward(nn.Identity()):
        x.exp().exp()
        torch.cat([x, x]).exp().exp()
    assert offload.moved == [198, 198]
