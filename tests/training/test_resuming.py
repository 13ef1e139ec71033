"""VideoDiffusion across checkpoints: what is stored, what is put back, and what a resumed run follows."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vidlab.autoencoders.identity import Identity
from vidlab.callbacks.ema import EMA
from vidlab.errors import UserError
from vidlab.text.words import WordsEncoder
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from vidlab.training.optimization.optimizers import LinearDecay, OptimizerFactory


class FrozenGain(Identity):
    """An autoencoder with a weight and a buffer, as learned ones have."""

    def __init__(self, gain: float = 2.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.register_buffer("offset", torch.tensor(0.0))

    def encode(self, pixels):
        return self.gain * pixels

    def decode(self, latents):
        return latents / self.gain


class FrozenWords(WordsEncoder):
    def __init__(self):
        super().__init__(width=8, depth=1, heads=2, rows=32, max_tokens=8)
        self.trainable = False
        self.requires_grad_(False)


def test_frozen_parts_stay_as_they_are_and_out_of_the_optimizer(make_module, make_batch, make_trainer):
    module = make_module(autoencoder=FrozenGain(), text_encoder=FrozenWords())
    before = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    assert any(name.startswith("autoencoder.") for name in before)
    trainer = make_trainer()
    trainer.fit(module, [make_batch("ab"), make_batch("cd", number=1)])
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if name in before)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.denoiser.parameters()}


def rates_of(trainer, module, batches, **settings) -> list[float]:
    """The learning rate of each optimizer step of a fit."""
    rates: list[float] = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    trainer.fit(module, batches, **settings)
    return rates


def test_the_schedule_is_stepped_once_per_optimizer_step(make_module, make_batch, make_trainer):
    module = make_module(lr_schedule=LinearDecay(), optimizer=OptimizerFactory(torch.optim.SGD, lr=1e-3))
    batches = [make_batch("ab", number=n) for n in range(8)]
    rates = rates_of(make_trainer(max_steps=4, accumulate_grad_batches=2), module, batches)
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def saved(make_module, make_trainer, batches, path, **parts):
    module = make_module(**parts)
    trainer = make_trainer(max_steps=len(batches), plugins=[AtomicCheckpointIO()])
    trainer.fit(module, batches)
    trainer.save_checkpoint(path)
    return module


def frozen_parts() -> dict[str, nn.Module]:
    return {"autoencoder": FrozenGain(), "text_encoder": FrozenWords()}


def test_frozen_parts_are_left_out_and_put_back(make_module, make_batch, make_trainer, tmp_path):
    path, batches = tmp_path / "last.ckpt", [make_batch("ab", number=n) for n in range(2)]
    module = saved(make_module, make_trainer, batches, path, **frozen_parts())
    stored = load_checkpoint(path)["state_dict"]
    assert set(stored) == {f"backbone.{name}" for name in module.denoiser.state_dict()}
    torch.manual_seed(9)
    other = make_module(**frozen_parts())
    with torch.no_grad():
        other.text_encoder.start.fill_(9.0)
    trainer = make_trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    trainer.fit(other, batches, ckpt_path=path)  # strict; already at its last step
    assert trainer.global_step == 2
    for name, value in module.denoiser.state_dict().items():
        assert torch.equal(other.denoiser.state_dict()[name], value)
    assert other.text_encoder.start.unique().tolist() == [9.0]  # the other's own


def test_a_learned_text_encoder_is_stored(make_module, make_batch, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    module = saved(make_module, make_trainer, [make_batch("ab")], path)
    stored = load_checkpoint(path)["state_dict"]
    assert set(stored) == set(module.state_dict())
    assert any(name.startswith("text_encoder.") for name in stored)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_checkpoint_of_another_model_is_refused(make_module, make_batch, make_trainer, tmp_path, change):
    path, batches = tmp_path / "last.ckpt", [make_batch("ab")]
    saved(make_module, make_trainer, batches, path)
    checkpoint = load_checkpoint(path)
    if change == "missing":
        del checkpoint["state_dict"]["backbone.head.bias"]
    elif change == "unknown":
        checkpoint["state_dict"]["backbone.tail.bias"] = torch.zeros(1)
    else:
        checkpoint["state_dict"]["backbone.head.bias"] = torch.zeros(1)
    torch.save(checkpoint, path)
    name = "backbone.tail.bias" if change == "unknown" else "backbone.head.bias"
    with pytest.raises(UserError, match=f"another model: 1 parameters differ, the first is {name}"):
        make_trainer(plugins=[AtomicCheckpointIO()]).fit(make_module(), batches, ckpt_path=path)


def test_a_resumed_run_follows_the_schedule_of_its_own_length(make_module, make_batch, make_trainer, tmp_path):
    path, batches = tmp_path / "last.ckpt", [make_batch("ab", number=n) for n in range(8)]
    parts = {"lr_schedule": LinearDecay(), "optimizer": OptimizerFactory(torch.optim.SGD, lr=1e-3)}
    saved(make_module, make_trainer, batches[:2], path, **parts)  # its rate would now be 0
    trainer = make_trainer(max_steps=8, plugins=[AtomicCheckpointIO()])
    rates = rates_of(trainer, make_module(**parts), batches, ckpt_path=path)
    assert rates == pytest.approx([1e-3 * (1 - s / 8) for s in range(2, 8)])


def test_resuming_equals_running_through(make_module, make_batch, make_trainer, tmp_path):
    path, batches = tmp_path / "last.ckpt", [make_batch("ab", number=n) for n in range(4)]
    parts = {"optimizer": OptimizerFactory(partial(torch.optim.AdamW, betas=(0.9, 0.99)), lr=1e-2, clip_norm=1.0)}
    through = saved(make_module, make_trainer, batches, tmp_path / "through.ckpt", **parts)
    saved(make_module, make_trainer, batches[:2], path, **parts)
    resumed = make_module(**parts)
    make_trainer(max_steps=4, plugins=[AtomicCheckpointIO()]).fit(resumed, batches[2:], ckpt_path=path)
    for name, value in through.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


BIAS = "backbone.head.bias"
DAMAGES = {
    r"The checkpoint's ema: backbone.head.bias has shape \(1,\)": lambda c: c["ema"].update({BIAS: torch.zeros(1)}),
    "The checkpoint: backbone.head.bias .* not finite": lambda c: c["state_dict"][BIAS].fill_(float("nan")),
    "The checkpoint's ema: backbone.head.bias .* not finite": lambda c: c["ema"][BIAS].fill_(float("inf")),
    r"optimizer holds exp_avg \(\) for .*, which has shape \(": lambda c: moments(c).update(exp_avg=torch.tensor(1.0)),
    "optimizer holds numbers that are not finite in exp_avg_sq of": lambda c: moments(c)["exp_avg_sq"].fill_(math.nan),
    "The checkpoint's ema lacks 1 trained weights, such as backbone.head.bias": lambda c: c["ema"].pop(BIAS),
}


def moments(checkpoint) -> dict:
    return checkpoint["optimizer_states"][0]["state"][0]


@pytest.mark.parametrize("message", DAMAGES)
def test_shapes_are_exact_and_numbers_finite(make_module, make_batch, make_trainer, tmp_path, message):
    """A one-number average or moment would be broadcast over a whole weight."""
    path, batches = tmp_path / "last.ckpt", [make_batch("ab", number=n) for n in range(2)]
    parts = {"optimizer": OptimizerFactory(torch.optim.AdamW, lr=1e-2)}
    trainer = make_trainer(max_steps=1, plugins=[AtomicCheckpointIO()], callbacks=[EMA()])
    trainer.fit(make_module(**parts), batches[:1])
    trainer.save_checkpoint(path)
    checkpoint = load_checkpoint(path)
    DAMAGES[message](checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=message):
        make_trainer(max_steps=2, plugins=[AtomicCheckpointIO()], callbacks=[EMA()]).fit(
            make_module(**parts), batches, ckpt_path=path
        )
