"""Training in every precision: what is converted, what is dropped by a loss scaler, what a resumed run finds."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from vidlab.autoencoders.identity import Identity
from vidlab.backbones.stiv import STIV
from vidlab.callbacks.ema import EMA
from vidlab.callbacks.finite_loss import FiniteLoss
from vidlab.errors import UserError
from vidlab.losses.adversarial import PatchDiscriminator3D
from vidlab.randomness import KeyedRNG
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from vidlab.training.optimization.optimizers import LinearDecay, OptimizerFactory
from vidlab.training.precision_plugins import ScaledPrecision, precision_plugin

WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
AVERAGES = {"bf16-true": torch.float32, "64-true": torch.float64}


class Gain(Identity):
    """A frozen autoencoder with a weight."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))


def numbered(make_batch, count: int):
    return [make_batch("ab", number=n) for n in range(count)]


@pytest.mark.parametrize("precision", WEIGHTS)
def test_true_precisions_train_validate_resume_and_generate(precision, make_module, make_batch, make_trainer, tmp_path):
    def run(steps: int, **settings):
        torch.manual_seed(0)
        module, ema = make_module(autoencoder=Gain()), EMA()
        trainer = make_trainer(
            max_steps=steps, callbacks=[ema], plugins=[AtomicCheckpointIO(), precision_plugin(precision, "cpu")],
            limit_val_batches=1,
        )  # fmt: skip
        done = settings.get("done", 0)
        trainer.validate(module, [make_batch("cd")])
        assert trainer.callback_metrics["val/loss"].isfinite()
        trainer.fit(module, numbered(make_batch, 4)[done:], [make_batch("cd")], ckpt_path=settings.get("path"))
        return trainer, module, ema

    trainer, module, _ = run(2)
    trainer.save_checkpoint(path := tmp_path / "last.ckpt")
    stored = load_checkpoint(path)
    trained = {name: p.dtype for name, p in module.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {WEIGHTS[precision]} == {stored["state_dict"][name].dtype for name in trained}
    assert module.autoencoder.gain.dtype == torch.float32
    assert {value.dtype for value in stored["ema"].values()} == {AVERAGES[precision]}
    _, through, average = run(4)
    _, resumed, continued = run(4, done=2, path=path)
    assert all(torch.equal(p, q) for p, q in zip(through.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(average.average[name], value) for name, value in continued.average.items())
    with trainer.precision_plugin.forward_context():
        assert module.eval().pipeline.clips(["a dog"], KeyedRNG(0, ("x",), (0,))).isfinite().all()


def test_float64_differs_from_float32_by_its_rounding_alone(make_module, make_batch, make_trainer):
    losses = {}
    for precision in ("32-true", "64-true"):
        torch.manual_seed(0)
        module = make_module(backbone=partial(STIV, width=24, depth=2, heads=2, patch=(2, 4, 4)))
        trainer = make_trainer(max_steps=3, plugins=[precision_plugin(precision, "cpu")])
        trainer.fit(module, numbered(make_batch, 3))
        losses[precision] = trainer.callback_metrics["train/loss"].item()
    assert losses["64-true"] == pytest.approx(losses["32-true"], rel=1e-5)
    assert any((p != p.float()).any() for p in module.denoiser.parameters())


def test_float64_is_refused_where_no_denoiser_is_trained():
    with pytest.raises(UserError, match=r"precision=64-true trains denoisers only. Use precision=32-true"):
        precision_plugin("64-true", "cpu").convert_module(nn.Linear(2, 2))


def test_running_statistics_keep_the_precision_of_what_acts_on_them():
    critic = precision_plugin("bf16-true", "cpu").convert_module(PatchDiscriminator3D(width=4, layers=1))
    weighted = [m for m in critic.modules() if hasattr(m, "weight")]
    kinds = {kind: {m.weight.dtype for m in weighted if isinstance(m, kind)} for kind in (nn.Conv3d, nn.BatchNorm3d)}
    assert kinds == {nn.Conv3d: {torch.bfloat16}, nn.BatchNorm3d: {torch.float32}}
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(torch.rand(1, 3, 4, 8, 8)).isfinite().all()


@pytest.mark.parametrize("name", ["16-true", "transformer-engine", "banana"])
def test_other_precisions_are_refused(name):
    with pytest.raises(
        UserError, match=f"precision={name}: choose one of auto, 32-true, bf16-mixed, bf16-true, 16-mix"
    ):
        precision_plugin(name, "cuda")


def test_a_loss_scaler_needs_a_gpu():
    with pytest.raises(UserError, match=r"precision=16-mixed: .* GPU only. On a CPU use precision=bf16-mixed"):
        precision_plugin("16-mixed", "cpu")


class Overflow(Callback):
    """Makes the gradients of some steps infinite, as float16 does, and notes what follows each step."""

    def __init__(self, *steps: int):
        self.steps, self.weights, self.rates = steps, [], []

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def scaled() -> ScaledPrecision:
    return ScaledPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_moves_nothing_and_ends_nothing(make_module, make_batch, make_trainer, tmp_path, fused):
    def run(*steps: int):
        torch.manual_seed(0)
        adamw = OptimizerFactory(partial(torch.optim.AdamW, fused=fused), lr=1e-2, clip_norm=1.0)
        module, ema, seen = make_module(optimizer=adamw, lr_schedule=LinearDecay()), EMA(), Overflow(*steps)
        trainer = make_trainer(
            max_steps=4, callbacks=[seen, ema, FiniteLoss(1)], plugins=[AtomicCheckpointIO(), scaled()]
        )
        trainer.fit(module, numbered(make_batch, 4))
        return trainer, seen, ema

    trainer, seen, ema = run(1)
    plugin = trainer.precision_plugin
    assert trainer.global_step == 4 and plugin.skipped_steps == 1 and plugin.skipped_in_a_row == 0
    assert plugin.scaler.get_scale() == 2.0**11
    assert torch.equal(seen.weights[0], seen.weights[1]) and not torch.equal(seen.weights[1], seen.weights[2])
    assert seen.rates == pytest.approx([0.75e-2, 0.75e-2, 0.5e-2, 0.25e-2])  # after 1, 1, 2 and 3 steps of 4
    trainer.save_checkpoint(path := tmp_path / "last.ckpt")
    fresh = scaled()
    fresh.load_state_dict(load_checkpoint(path)["ScaledPrecision"])
    assert fresh.state_dict() == plugin.state_dict() and fresh.skipped_steps == 1
    # of the first step and those after the second: averages of 3 steps, whose decays begin at 2/11
    first, third, fourth = seen.weights[0], seen.weights[2], seen.weights[3]
    start = run(0, 1, 2, 3)[1].weights[0]
    wanted = start
    for step, value in enumerate((first, third, fourth), start=1):
        decay = (1 + step) / (10 + step)
        wanted = decay * wanted + (1 - decay) * value
    got = torch.cat([ema.average[n].flatten() for n, _ in trainer.lightning_module.named_parameters()])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_norms_and_clipping_are_those_of_unscaled_gradients(make_module, make_batch, make_trainer, fused):
    norms = []
    for plugin in (MixedPrecision("bf16-mixed", "cpu"), scaled()):
        torch.manual_seed(0)
        adamw = OptimizerFactory(partial(torch.optim.AdamW, fused=fused), lr=1e-2, clip_norm=1.0)
        trainer = make_trainer(max_steps=1, plugins=[plugin])
        trainer.fit(make_module(optimizer=adamw), numbered(make_batch, 1))
        norms.append(trainer.callback_metrics["train/grad_norm"].item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_a_training_of_overflows_alone_is_ended(make_module, make_batch, make_trainer, monkeypatch):
    monkeypatch.setattr("vidlab.callbacks.finite_loss.MOST_OVERFLOWS", 4)
    count = 6
    trainer = make_trainer(
        max_steps=count, callbacks=[Overflow(*range(count)), FiniteLoss(1)], plugins=[scaled()]
    )  # fmt: skip
    with pytest.raises(UserError, match="gradients overflowed 4 times in a row at step 4"):
        trainer.fit(make_module(), numbered(make_batch, count))
