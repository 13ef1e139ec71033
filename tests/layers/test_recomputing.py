from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidlab.backbones.dit import DiT
from vidlab.clip import DenoiserInput
from vidlab.cost.memory import MemoryTracker
from vidlab.errors import UserError
from vidlab.layers.compilation.recomputing import KEPT, checked

KINDS = ("none", "block", "selective")


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kept = self.others = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.kept += func in KEPT
        self.others += func not in KEPT
        return func(*args, **(kwargs or {}))


@pytest.fixture
def step(make_dit: Callable[..., DiT], make_text, latent) -> Callable[..., list[torch.Tensor]]:
    def run(kind: str, bf16: bool = False) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = make_dit(activation_checkpointing=kind).train()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        latents, t = torch.randn(2, latent.channels, latent.frames, latent.height, latent.width), torch.rand(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(DenoiserInput(latents, t, t, make_text())).prediction.square().mean()
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return run


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["block", "selective"])
def test_loss_and_gradients_are_those_of_a_block_that_keeps_everything(step, kind, bf16):
    pairs = zip(step("none", bf16), step(kind, bf16), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_products_and_attention_are_computed_once_and_the_rest_twice(step):
    found = {}
    for kind in KINDS:
        with Counted() as found[kind]:
            step(kind)
    assert found["selective"].kept == found["none"].kept < found["block"].kept
    assert found["selective"].others > found["none"].others


def test_what_is_kept_takes_more_memory_than_none_and_less_than_all(step):
    peaks = {}
    for kind in KINDS:
        with MemoryTracker() as tracker:
            step(kind)
        peaks[kind] = tracker.peak
    assert peaks["block"] < peaks["selective"] < peaks["none"]


def test_another_word_is_refused_and_so_is_compiling_what_is_kept_by_name(make_dit):
    assert [checked(value) for value in (False, True, *KINDS)] == ["none", "block", *KINDS]
    with pytest.raises(UserError, match="activation_checkpointing=some: choose none, block"):
        make_dit(activation_checkpointing="some")
    with pytest.raises(UserError, match="activation_checkpointing=selective"):
        make_dit(activation_checkpointing="selective").compile_blocks()
