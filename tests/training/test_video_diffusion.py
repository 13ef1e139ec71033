import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from vidlab.autoencoders.haar import Haar
from vidlab.backbones.base import VideoDenoiser
from vidlab.backbones.dit import DiT
from vidlab.callbacks.ema import EMA
from vidlab.clip import ClipBatch, DenoiserInput, DenoiserOutput, LossContext
from vidlab.diffusion.betas import LinearBetas
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Epsilon, Velocity, VPrediction, X0Prediction
from vidlab.diffusion.schedules import LinearPath, VariancePreserving
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.randomness import KeyedRNG
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.held_out import VALIDATION_SEED
from vidlab.training.optimization.optimizers import OptimizerFactory

BINS = (-4.0, 0.0, 4.0)
# for latents of 2 x 2 x 2
FITTING = partial(DiT, layouts=LayerPlan((Full3D(),)), width=12, depth=1, heads=2, patch=(1, 1, 1))


class Answering(VideoDenoiser):
    """Answers what it is told to: ``answer(input)``."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        return DenoiserOutput(self.answer(input))

    def token_count(self, latent):
        return 1


class Pull(nn.Module):
    """A regularizer with a parameter of its own and a feature it asks for: weight * (parameter - 1)^2."""

    weight = 0.5

    def __init__(self, requested: frozenset[str] = frozenset()):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("calls", torch.tensor(0))
        self.requested = requested
        self.seen: list[LossContext] = []

    def forward(self, context: LossContext) -> Tensor:
        self.calls += 1
        self.seen.append(context)
        return (self.strength - 1) ** 2


def objective(parameterization=None) -> GaussianObjective:
    return GaussianObjective(LinearPath(), parameterization or Velocity(), Constant(), Uniform())


def validated(trainer, module, batches) -> dict[str, float]:
    trainer.validate(module, batches)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# building


def test_the_denoiser_is_built_once(make_module):
    module = make_module(built=False)
    assert module.backbone is None
    with pytest.raises(RuntimeError, match="configure_model"):
        _ = module.denoiser
    module.configure_model()
    first = module.denoiser
    module.configure_model()
    assert module.denoiser is first


def test_planning_leaves_the_module_unbuilt(make_module):
    module = make_module(built=False)
    cost = module.cost()
    assert module.backbone is None
    module.configure_model()
    assert cost.parameters == sum(p.numel() for p in module.denoiser.parameters())
    assert cost.tokens == 2 * 2 * 2


def test_latents_follow_from_the_clip_and_the_autoencoder(make_module):
    latent = make_module(built=False, backbone=FITTING, autoencoder=Haar(2, 4, 4)).latent
    assert (latent.channels, latent.frames, latent.height, latent.width) == (96, 2, 2, 2)
    with pytest.raises(UserError, match=r"data.height=9"):
        make_module(built=False, backbone=FITTING, autoencoder=Haar(2, 4, 4), clip_shape=(4, 9, 8))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(make_module, share):
    with pytest.raises(UserError, match=f"task.text_dropout={share}"):
        make_module(text_dropout=share)


# training


def test_the_loss_of_a_step_by_hand(make_module, make_batch, make_trainer):
    module, batch = make_module(text_dropout=0.0, seed=3), make_batch("abc")
    trainer = make_trainer(max_steps=1)
    draw = KeyedRNG(3, batch.keys, batch.epochs)
    t, noise = draw.uniform("t"), draw.normal("noise", (3, 4, 8, 8))
    wide = t.view(3, 1, 1, 1, 1)
    with torch.no_grad():
        text = module.text_encoder(batch.captions)
        z = (1 - wide) * batch.pixels + wide * noise
        output = module.denoiser(DenoiserInput(z, t, 1000 * t, text)).prediction
        expected = (output - (noise - batch.pixels)).square().mean()
    trainer.fit(module, [batch])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_learns_the_text_encoder_too(make_module, make_batch, make_trainer):
    module = make_module()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    make_trainer(max_steps=3).fit(module, [make_batch("abcd", number=n) for n in range(3)])
    still = {name for name, p in module.named_parameters() if torch.equal(p, before[name])}
    # the one text layer mixes tokens that are then averaged; nothing of it may stay
    assert still == set()


def test_the_share_of_dropped_captions(make_module):
    count = 2000
    draw = KeyedRNG(1, tuple(map(str, range(count))), (0,) * count)
    dropped = make_module(text_dropout=0.1).encoders.dropped_captions(["caption"] * count, draw)
    share = dropped.count("") / count
    assert set(dropped) == {"", "caption"}
    assert abs(share - 0.1) < 5 * math.sqrt(0.1 * 0.9 / count)


def test_dropping_is_keyed_by_clip_and_has_its_ends(make_module):
    module, keys = make_module(text_dropout=0.5), tuple("abcdefghijklmnop")
    captions = list(keys)
    together = module.encoders.dropped_captions(captions, KeyedRNG(0, keys, (0,) * 16))
    apart = [module.encoders.dropped_captions([key], KeyedRNG(0, (key,), (0,)))[0] for key in keys]
    assert together == apart and 2 < together.count("") < 14
    assert together != module.encoders.dropped_captions(captions, KeyedRNG(0, keys, (1,) * 16))  # another epoch, others
    draw = KeyedRNG(0, keys, (0,) * 16)
    assert make_module(text_dropout=0.0).encoders.dropped_captions(captions, draw) == captions
    assert make_module(text_dropout=1.0).encoders.dropped_captions(captions, draw) == [""] * 16


def test_dropped_captions_reach_the_denoiser(make_module, make_batch, make_trainer, monkeypatch):
    seen = []
    module = make_module(text_dropout=1.0)
    encode = module.text_encoder.encode
    monkeypatch.setattr(module.text_encoder, "encode", lambda captions: seen.append(list(captions)) or encode(captions))
    make_trainer(max_steps=1).fit(module, [make_batch("ab")])
    assert seen == [["", ""]]


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (10.0, 5.0), (None, 5.0)])
def test_the_global_norm_is_clipped_by_hand(make_module, monkeypatch, limit, expected):
    module = make_module(optimizer=OptimizerFactory(torch.optim.SGD, lr=1.0, clip_norm=limit))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: float(value)}))
    a, b = module.denoiser.head.bias, module.denoiser.embed.bias
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    a.grad[0], b.grad[1] = 3.0, 4.0
    module.configure_gradient_clipping(None)
    assert logged == {"train/grad_norm": 5.0}
    assert torch.stack([a.grad[0], b.grad[1]]).norm().item() == pytest.approx(expected, rel=1e-5)
    assert (a.grad[0] / b.grad[1]).item() == pytest.approx(0.75)


def test_without_a_limit_gradients_are_only_looked_at(make_module, monkeypatch):
    module = make_module(optimizer=OptimizerFactory(torch.optim.SGD, lr=1.0, clip_norm=None))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: float(value)}))
    bias = module.denoiser.head.bias
    bias.grad = torch.ones_like(bias)
    bias.grad[0] = torch.inf
    before = bias.grad.clone()
    module.configure_gradient_clipping(None)
    assert logged == {"train/grad_norm": torch.inf} and torch.equal(bias.grad, before)


class Batches(LightningDataModule):
    """Given batches, and the position that the module reports back."""

    def __init__(self, loader):
        super().__init__()
        self.loader, self.batches_consumed = loader, 0

    def train_dataloader(self):
        return self.loader


def test_consumed_batches_are_counted_for_the_data(make_module, make_batch, make_trainer, loader):
    data = Batches(loader([make_batch("ab", number=n) for n in (7, 8, 9)]))
    make_trainer().fit(make_module(), datamodule=data)
    assert data.batches_consumed == 9  # 7 and 8 were used


# regularizers


def test_a_regularizer_is_weighted_logged_trained_and_left_out_of_the_average(
    make_module, make_batch, make_trainer, tmp_path
):
    term, ema = Pull(), EMA(0.9)
    plain, module = make_module(), make_module(regularizers={"pull": term})
    batch = make_batch("ab", number=5)
    plain_trainer, trainer = make_trainer(max_steps=1), make_trainer(max_steps=1, callbacks=[ema])
    plain_trainer.fit(plain, [batch])
    trainer.fit(module, [batch])
    metrics = trainer.callback_metrics
    assert metrics["train/pull"].item() == 4  # (3 - 1)^2
    difference = metrics["train/loss"] - plain_trainer.callback_metrics["train/loss"]
    assert difference.item() == pytest.approx(0.5 * 4, rel=1e-5)
    # d/ds 0.5 (s - 1)^2 = s - 1 = 2; SGD with lr 0.05
    assert term.strength.item() == pytest.approx(3 - 0.05 * 2)
    assert ema.average and not any("regularizer" in name for name in ema.average)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    stored = load_checkpoint(path)["state_dict"]
    assert {"regularizer_modules.pull.strength", "regularizer_modules.pull.calls"} <= set(stored)
    other = make_module(regularizers={"pull": Pull()})
    other.load_state_dict(stored)
    assert other.regularizers.terms["pull"].strength.item() == term.strength.item()
    assert other.regularizers.terms["pull"].calls.item() == 1


def test_a_regularizer_sees_the_batch_its_target_and_the_step(make_module, make_batch, make_trainer):
    term = Pull()
    batch = make_batch("ab", number=5)
    make_trainer(max_steps=1).fit(make_module(regularizers={"pull": term}, seed=2), [batch])
    (context,) = term.seen
    assert context.batch.keys == ("a", "b") and context.step == 5
    noise = KeyedRNG(2, ("a", "b"), (0, 0)).normal("noise", (3, 4, 8, 8))
    torch.testing.assert_close(context.target, noise - batch.pixels)
    assert context.output.prediction.requires_grad
    # velocity is noise - x0 on z = (1 - t) x0 + t noise, so x0 = z - t velocity; its pixels have a gradient
    x0 = context.input.latents - context.input.t.view(-1, 1, 1, 1, 1) * context.output.prediction
    torch.testing.assert_close(context.x0, x0)
    assert context.x0 is context.x0 and context.decode(context.x0).requires_grad
    assert torch.equal(context.draw.normal("x", (2,)), KeyedRNG(2, ("a", "b"), (0, 0)).normal("x", (2,)))


def test_what_regularizers_ask_for_is_a_feature_of_the_denoiser(make_module):
    terms = {"one": Pull(frozenset({"q"})), "two": Pull(frozenset({"q", "k"}))}
    with pytest.raises(UserError, match=r"losses: k, q are asked of the model, whose features are self_attention"):
        make_module(regularizers=terms)


# validation


def fixed_clip(value: float, keys="ab") -> ClipBatch:
    count = len(keys)
    pixels = torch.full((count, 3, 4, 8, 8), value)
    return ClipBatch(pixels, ("",) * count, tuple(keys), (0,) * count, 0, (8.0,) * count)


@pytest.mark.parametrize("kind", [Velocity, VPrediction, Epsilon, X0Prediction])
def test_a_denoiser_that_knows_the_clip_has_no_error(make_module, make_trainer, kind):
    schedule = VariancePreserving(LinearBetas()) if kind is Epsilon else LinearPath()
    chosen, value = replace(objective(Velocity()), schedule=schedule, parameterization=kind()), 0.25
    module = make_module(objective=chosen, log_snr_bins=BINS)

    def answer(input: DenoiserInput) -> Tensor:
        path = schedule.coefficients(input.t).like(input.latents)
        x0 = torch.full_like(input.latents, value)
        return chosen.parameterization.target(x0, (input.latents - path.alpha * x0) / path.sigma, path)

    module.backbone = Answering(answer)
    metrics = validated(make_trainer(), module, [fixed_clip(value)])
    assert metrics["val/x0_mse"] < 1e-9 and metrics["val/loss"] < 1e-6


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_denoiser_that_answers_zero_has_the_error_of_its_input(make_module, make_trainer, scale):
    """Velocity 0 says x0 = z, so the error in pixels is (t (eps - x0))^2, divided by the latents' scale squared."""
    module = make_module(built=False, backbone=FITTING, autoencoder=Haar(2, 4, 4, scale), log_snr_bins=BINS)
    module.backbone = Answering(lambda input: torch.zeros_like(input.latents))
    batch = fixed_clip(0.5)
    metrics = validated(make_trainer(), module, [batch])
    noise = KeyedRNG(VALIDATION_SEED, batch.keys, batch.epochs).normal("noise", (96, 2, 2, 2))
    velocity = noise - module.autoencoder.encode(batch.pixels)
    levels = {value: 1 / (1 + math.exp(value / 2)) for value in BINS}  # log SNR = 2 log((1 - t) / t)
    expected = {value: (t**2 * velocity.square().mean() / scale**2).item() for value, t in levels.items()}
    for value in BINS:
        assert metrics[f"val/x0_mse/log_snr_{value:g}"] == pytest.approx(expected[value], rel=1e-5)
    assert metrics["val/x0_mse"] == pytest.approx(sum(expected.values()) / 3, rel=1e-5)
    assert metrics["val/loss"] == pytest.approx(velocity.square().mean().item(), rel=1e-5)


def rows(batch: ClipBatch, chosen: slice) -> ClipBatch:
    parts = {name: getattr(batch, name)[chosen] for name in ("content", "captions", "keys", "epochs", "fps")}
    return replace(batch, **parts)


def test_validation_depends_on_neither_batch_size_nor_seed_nor_order(make_module, make_batch, make_trainer):
    six = make_batch("abcdef")
    results = [
        validated(make_trainer(), make_module(seed=seed), [rows(six, part) for part in parts])
        for seed, parts in (
            (0, [slice(0, 6)]),
            (1, [slice(0, 2), slice(2, 4), slice(4, 6)]),
            (2, [slice(0, 4), slice(4, 6)]),  # a last batch that is smaller
            (3, [slice(5, 6), slice(0, 5)]),
        )
    ]
    assert "val/x0_mse" in results[0] and len(results[0]) == 2 + 5
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_validation_draws_nothing_from_the_global_generator(make_module, make_batch, monkeypatch):
    module = make_module().eval()
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    before = torch.get_rng_state()
    module.validation_step(make_batch("ab"), 0)
    assert torch.equal(torch.get_rng_state(), before)


# generation


def test_generated_videos_are_pixels_and_a_function_of_prompt_and_draw(make_module, make_draw):
    module = make_module().eval()
    with torch.no_grad():
        module.denoiser.head.bias.fill_(-3.0)  # velocities that leave [-1, 1]
    videos = module.pipeline.clips(["a red circle", ""], make_draw(2))
    assert videos.shape == (2, 3, 4, 8, 8) and not videos.requires_grad
    assert videos.max() == 1 and videos.min() >= -1
    torch.testing.assert_close(module.pipeline.clips(["a red circle"], make_draw(1)), videos[:1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(module.pipeline.clips(["a red circle"], make_draw(1, seed=1)), videos[:1])


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_stop_iteration_in_a_step_is_an_error(make_module, make_batch, make_trainer, stage):
    """Lightning takes one for the end of the data: a run would end, or a validation measure less, without a word."""
    module, batches = make_module(), [make_batch("ab")]
    module.backbone = Answering(lambda input: next(iter(())))
    with pytest.raises(RuntimeError, match=r"(training|validation)_step raised StopIteration"):
        getattr(make_trainer(max_steps=1, num_sanity_val_steps=0), stage)(module, batches)
