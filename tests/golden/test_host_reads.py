"""A training step never waits for the device: no number of it is read but those that are logged."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from golden_runs import CONDITIONINGS, MODELS, TINY, batches, composed
from host_reads import OnDevice, watched
from lightning.pytorch import LightningModule, Trainer

from vidlab.autoencoders.base import Autoencoder
from vidlab.callbacks.adaptive_clipping import AdaptiveClipping
from vidlab.lab.compose import build_module
from vidlab.randomness import KeyedRNG
from vidlab.training.optimization.optimizers import trainable_parameters

VARIANTS = [
    *(f"conditioning={name}" for name in CONDITIONINGS if name != "none"),
    "objective=pyramid_flow",
    "optimizer=muon",
]
QUANTITIES = ("max_norm", "processed_max", "deviation", "threshold", "abnormal_ranks", "ema", "ema_variance")


def reads_of_a_step(*words: str) -> list[str]:
    """The second step as it is trained: the first makes tables and the optimizer's state."""
    module = build_module(composed("train", *words, *TINY))
    module.log, module.count = lambda *_, **__: None, lambda _: None
    module.configure_model()
    module.train()
    updates = module.optimizer_factory.build(module)
    before, batch = batches()[:2]
    step(module, updates, before)
    state = [value for one in updates.state.values() for name, value in one.items() if name != "step"]
    with watched(module.parameters(), module.buffers(), state, [batch.pixels]) as device, drawn_on(device):
        step(module, updates, batch)
    return device.reads


class HostRNG(KeyedRNG):
    """What ``on_host`` gives where the batch is on a GPU."""


@contextmanager
def drawn_on(device: OnDevice) -> Iterator[None]:
    """Random numbers are the device's but where they are made for the host."""

    def on_device(draw):
        def drawn(self, *arguments):
            found = draw(self, *arguments)
            if type(self) is KeyedRNG:
                device.add([found])
            return found

        return drawn

    on_host = property(lambda self: HostRNG(self.seed, self.keys, self.epochs, "cpu", self.visits, self.batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyedRNG, "on_host", on_host)
        for name in ("normal", "uniform"):
            patch.setattr(KeyedRNG, name, on_device(getattr(KeyedRNG, name)))
        yield


def step(module, updates, batch) -> None:
    module.training_step(batch, batch.number)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(trainable_parameters(module), 1.0)
    updates.step()
    updates.zero_grad()


def test_a_read_of_what_is_computed_from_the_device_is_found():
    weight, host = torch.ones(2), torch.ones(2)
    with watched([weight]) as device:
        moved = (weight * host).sum()
        host.sum().item(), host.tolist(), (host > 0).nonzero()
        assert not device.reads
        moved.item(), moved.tolist(), bool(moved > 0), weight[weight > 0]
    assert len(device.reads) == 4


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """On a CPU an autoencoder asks whether clips are finite, which it leaves on a GPU."""
    monkeypatch.setattr(Autoencoder, "check_frames", lambda *_: None)


def test_adaptive_clipping_reads_whether_to_take_a_step_and_nothing_else():
    trainer = object.__new__(type("Stub", (Trainer,), {"model": None, "global_rank": 0, "world_size": 1}))
    module, clipping, logged = LightningModule(), AdaptiveClipping(warmup_steps=1), {}
    module.log_dict = logged.update
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    updates = torch.optim.SGD(weights)
    for gradient in (1.0, 1.5, 1.25):
        for weight in weights:
            weight.grad = torch.full((3,), gradient)
        with watched([weight.grad for weight in weights]) as device:
            clipping.on_before_optimizer_step(trainer, module, updates)
        (read,) = device.reads
        assert "adaptive_clipping.py" in read and all(weight.grad is not None for weight in weights)
    assert set(logged) == {f"train/clip/{name}" for name in QUANTITIES}


def cases(names, every_run):
    return [pytest.param(name, marks=() if name in every_run else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("model", cases(MODELS, ("skiparse", "stiv", "open_sora_plan", "mmdim")))
def test_a_step_of_a_backbone_reads_nothing(model):
    assert reads_of_a_step(f"model={model}") == []


@pytest.mark.parametrize("word", cases(VARIANTS, ("conditioning=masked_video", "optimizer=muon")))
def test_nor_does_one_with_another_conditioning_objective_or_optimizer(word):
    assert reads_of_a_step("model=full3d", word) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_never_wait_for_a_gpu(model):
    module = build_module(composed("train", f"model={model}", *TINY))
    module.log, module.count = lambda *_, **__: None, lambda _: None
    module.configure_model()
    module.cuda().train()
    updates = module.optimizer_factory.build(module)
    moved = [batch.to("cuda") for batch in batches()]
    with torch.autocast("cuda", torch.bfloat16):
        for batch in moved[:2]:  # make tables, kernels and the optimizer's state
            step(module, updates, batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in moved:
                step(module, updates, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
