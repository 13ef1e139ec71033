"""VideoAutoencoder: whose turn it is, what counts as a step, what the losses are, and that resuming changes nothing."""

import re
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import l1_loss

from vidlab.autoencoders.base import Posterior
from vidlab.autoencoders.haar import Haar
from vidlab.autoencoders.identity import Identity
from vidlab.autoencoders.learned import DecoderOutput, EncoderOutput, LearnedAutoencoder
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.callbacks.ema import EMA, warmed_up_decay
from vidlab.callbacks.finite_loss import FiniteLoss
from vidlab.callbacks.last_checkpoint import LastCheckpoint
from vidlab.callbacks.reconstructions import Reconstructions
from vidlab.callbacks.validate_at_end import ValidateAtEnd
from vidlab.clip import Stride
from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.plan import BucketStats
from vidlab.errors import UserError
from vidlab.losses.adversarial import PatchDiscriminator3D
from vidlab.perceptual.lpips import LPIPS
from vidlab.training.autoencoder.reconstruction import LossWeights
from vidlab.training.autoencoder.trainer_checks import check_data
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from vidlab.training.optimization.clipping import AdaptiveClipper
from vidlab.training.optimization.optimizers import Constant, LinearDecay, OptimizerFactory
from vidlab.training.video_autoencoder import VideoAutoencoder

SIZE = (5, 16, 16)
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # rates follow batches
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99))


def tiny_module(**parts) -> VideoAutoencoder:
    torch.manual_seed(0)
    defaults = {
        "autoencoder": WFVAE(2, 4, 4, 4, 1, 1, 1, dropout=0.1),
        "clip_shape": SIZE,
        "optimizer": OptimizerFactory(ADAMW, lr=1e-3, clip_norm=1.0, lr_multipliers={"*": 1.0}),
        "lr_schedule": Constant(),
        "discriminator": PatchDiscriminator3D(width=4, layers=2),
    }
    return VideoAutoencoder(**(defaults | parts))


@pytest.fixture
def batches(make_batch):
    return [make_batch("abcdefgh"[n % 8] + "xyz"[n % 3], SIZE, n) for n in range(16)]


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: nn.Module) -> bool:
    """Whether any learned weight moved; running statistics of normalizations may."""
    learned = dict(network.named_parameters())
    return any(not torch.equal(before[name], learned[name]) for name in learned)


@pytest.mark.parametrize(
    ("start", "accumulate", "expected"),
    [(0, 1, "GDGDGDGD"), (3, 1, "GGGDGDGD"), (4, 1, "GGGGGDGD"), (0, 2, "GGDDGGDD"), (3, 2, "GGGGGGDD")],
)
def test_turns(start, accumulate, expected):
    module = tiny_module(discriminator_start=start, accumulate=accumulate)
    assert "".join("GD"[module.turns.turn(step)] for step in range(8)) == expected


def test_without_a_discriminator_every_step_is_the_generators():
    module = tiny_module(discriminator=None)
    assert [module.turns.turn(step) for step in range(4)] == [0, 0, 0, 0] and len(module.networks) == 1


class Watch(EMA):
    """Notes after each batch the global step and which of the two networks moved."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.before = weights_of(pl_module.autoencoder), weights_of(pl_module.discriminator)

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        networks = (pl_module.autoencoder, pl_module.discriminator)
        moved = "".join(n for n, old, net in zip("GD", self.before, networks, strict=True) if changed(old, net))
        self.notes = [*getattr(self, "notes", []), (trainer.global_step, moved)]


def test_each_step_trains_one_network_and_counts_one(batches, make_trainer):
    watch, module = Watch(), tiny_module()
    make_trainer(max_steps=5, callbacks=[watch]).fit(module, batches)
    assert watch.notes == [(1, "G"), (2, "D"), (3, "G"), (4, "D"), (5, "G")]
    assert [network.steps for network in module.networks] == [3, 2]
    assert all(p.grad is None for p in module.parameters())


def test_the_adversary_may_have_an_optimizer_of_its_own(batches, make_trainer):
    own = OptimizerFactory(torch.optim.SGD, lr=0.0, clip_norm=0.5)
    module = tiny_module(discriminator_optimizer=own)
    before = {name: value.detach().clone() for name, value in module.discriminator.named_parameters()}
    make_trainer(max_steps=2).fit(module, batches)
    assert all(torch.equal(before[name], value) for name, value in module.discriminator.named_parameters())
    assert [network.clip_norm for network in module.networks] == [1.0, 0.5] and module.networks[1].steps == 1


@pytest.mark.parametrize(
    ("given", "expected"), [({}, [5e-5, 1e-3]), ({"*": 1.0}, [1e-3]), ({"*.bias": 2.0}, [1e-3, 2e-3])]
)
def test_the_rates_an_autoencoder_declares_hold_where_no_others_are_given(given, expected):
    module = tiny_module(optimizer=OptimizerFactory(ADAMW, lr=1e-3, lr_multipliers=given))
    module._trainer = SimpleNamespace(max_steps=1)
    (autoencoder, discriminator), _ = module.configure_optimizers()
    assert sorted({group["lr"] for group in autoencoder.param_groups}) == pytest.approx(expected)
    assert {group["lr"] for group in discriminator.param_groups} == {1e-3}
    slow = [name for group in autoencoder.param_groups if group["lr"] < 1e-3 for name in group["names"]]
    assert slow == ([] if given else [n for n in slow if n.startswith(("encoder.connect_l", "encoder.down1.0."))])


def test_only_training_clips_are_mirrored(batches, make_trainer):
    seen = {"training": set(), "validation": set()}

    class Watching(VideoAutoencoder):
        def reconstruct(self, batch, draw):
            original = next(b for b in batches if b.keys == batch.keys).pixels
            same = torch.equal(batch.pixels, original)
            seen["training" if self.training else "validation"].add(same)
            torch.testing.assert_close(batch.pixels.flatten(1).sort().values, original.flatten(1).sort().values)
            return super().reconstruct(batch, draw)

    torch.manual_seed(0)
    module = Watching(
        WFVAE(2, 4, 4, 4, 1, 1, 1), SIZE, OptimizerFactory(ADAMW, lr=1e-3), Constant(), mirror=True
    )  # fmt: skip
    make_trainer(max_steps=8).fit(module, batches[:8], batches[8:10])
    assert False in seen["training"] and seen["validation"] == {True}


def test_accumulated_batches_count_and_make_one_step(batches, make_trainer):
    watch, module = Watch(), tiny_module(accumulate=2)
    make_trainer(max_steps=6, callbacks=[watch]).fit(module, batches)
    assert watch.notes == [(1, ""), (2, "G"), (3, ""), (4, "D"), (5, ""), (6, "G")]


def test_accumulation_adds_up_gradients(make_batch, make_trainer):
    """Two batches of one clip make the step of one batch of two: reconstruction and KL are means over clips."""
    first = WFVAE(2, 4, 4, 4, 1, 1, 1)
    settings = {"discriminator": None, "optimizer": OptimizerFactory(torch.optim.SGD, lr=1e-4)}
    one = tiny_module(autoencoder=first, **settings)
    two = tiny_module(autoencoder=deepcopy(first), accumulate=2, **settings)
    before = weights_of(one.autoencoder)
    make_trainer(max_steps=1).fit(one, [make_batch("ab", SIZE)])
    make_trainer(max_steps=2).fit(two, [make_batch("a", SIZE), make_batch("b", SIZE, 1)])
    for name, value in one.autoencoder.state_dict().items():
        step, other = value - before[name], two.autoencoder.state_dict()[name] - before[name]
        torch.testing.assert_close(other, step, rtol=1e-2, atol=3e-7)


def test_the_average_follows_generator_steps_only(batches, make_trainer):
    ema, module = EMA(), tiny_module(lr_schedule=Constant())
    seen: list[torch.Tensor] = []
    name = "decoder.conv_out.bias"
    weight = dict(module.autoencoder.named_parameters())[name]
    average = weight.detach().clone()
    module.on_train_batch_end = lambda *_: seen.append(weight.detach().clone())
    make_trainer(max_steps=4, callbacks=[ema]).fit(module, batches)
    for number, value in enumerate(seen[::2], start=1):  # steps 0 and 2 are the generator's
        average = torch.lerp(average, value, 1 - warmed_up_decay(number, ema.decay))
    torch.testing.assert_close(ema.average[f"autoencoder.{name}"], average)
    assert not any(key.startswith("discriminator") for key in ema.average)


def test_checkpoints_validation_and_schedules_count_batches(batches, make_trainer, tmp_path):
    module = tiny_module(lr_schedule=LinearDecay())
    rates: list[tuple[float, ...]] = []
    module.on_train_batch_start = lambda *_: rates.append(
        tuple(optimizer.param_groups[0]["lr"] for optimizer in module.trainer.optimizers)
    )
    validated: list[int] = []
    module.on_validation_start = lambda: validated.append(module.trainer.global_step)
    trainer = make_trainer(
        max_steps=5, val_check_interval=2, check_val_every_n_epoch=None, plugins=[AtomicCheckpointIO()],
        callbacks=[LastCheckpoint(str(tmp_path), 3), ValidateAtEnd()], enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(module, batches, batches[:1])
    assert validated == [2, 4, 5]
    expected = [pytest.approx(1e-3 * (1 - step / 5)) for step in range(5)]
    assert [rate[0] for rate in rates] == expected and [rate[1] for rate in rates] == expected
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 5


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 3), (2, 3), (2, 5)])
def test_resuming_equals_running_through(batches, make_trainer, tmp_path, accumulate, stop):
    """Also between two accumulated batches, with dropout in both networks, momentum, and clipping statistics."""

    def run(steps: int, start: int = 0, path=None) -> tuple[VideoAutoencoder, EMA, list[float]]:
        module, ema = tiny_module(accumulate=accumulate, adaptive_clipping=AdaptiveClipper()), EMA()
        losses: list[float] = []
        module.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))
        trainer = make_trainer(max_steps=steps, callbacks=[ema], plugins=[AtomicCheckpointIO()])
        trainer.fit(module, batches[start:], ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module, ema, losses

    through, average, losses = run(8)
    _, _, first = run(stop)
    resumed, resumed_average, second = run(8, stop, tmp_path / f"{stop}.ckpt")
    assert first + second == losses
    for name, value in through.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(torch.equal(resumed_average.average[name], value) for name, value in average.average.items())
    assert [p.statistics for p in resumed.networks] == [p.statistics for p in through.networks]


def test_the_loss_is_the_weighted_sum_of_its_logged_parts(batches, make_trainer):
    weights = LossWeights(perceptual=0.3, kl=1e-3, wavelet=0.2, adversarial=0.5)
    network = LPIPS("vgg")  # random weights: a distance like another
    module = tiny_module(weights=weights, perceptual=network)
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, batches)
    found = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items()}
    values = 3 * SIZE[1] * SIZE[2]
    assert found["reconstruction"] == pytest.approx((found["l1"] + 0.3 * found["lpips"]) * values, rel=1e-4)
    parts = found["reconstruction"] + 1e-3 * found["kl"] + 0.2 * found["wavelet"]
    assert found["loss"] == pytest.approx(parts + found["adaptive_weight"] * found["adversarial"], rel=1e-4)
    assert found["grad_norm"] > 1 and "discriminator" not in found


def test_the_adversary_gets_its_share_of_the_last_layers_gradient(batches):
    """Equation 4: lambda times |d adversarial / d last layer| is half of |d reconstruction / d last layer|."""
    module = tiny_module()
    logged: dict[str, torch.Tensor] = {}
    module.log_terms = lambda values, step: logged.update(values)
    module._trainer = SimpleNamespace(global_step=0)
    module._generate(batches[0])
    last = module.autoencoder.last_decoder_weight()
    of_rest, of_adversary = (
        torch.autograd.grad(logged[name], last, retain_graph=True)[0].norm()
        for name in ("reconstruction", "adversarial")
    )
    torch.testing.assert_close(logged["adaptive_weight"] * of_adversary, 0.5 * of_rest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("turn", ["generator", "discriminator"])
def test_a_clip_that_breaks_the_loss_is_named(turn, batches, make_trainer):
    module = tiny_module(discriminator_start=0)
    broken = 2 if turn == "generator" else 3
    assert "GD"[module.turns.turn(broken)] == turn[0].upper()
    batches[broken].pixels[1].fill_(3e38)  # overflows in the network
    named = re.escape(batches[broken].keys[1])
    with pytest.raises(UserError, match=rf"First without a finite loss: 1 of the 2 clips of a batch, {named}\.$"):
        make_trainer(max_steps=6, callbacks=[FiniteLoss(every_n_steps=1)]).fit(module, batches)


def test_latents_of_held_out_clips_have_unit_variance(batches, make_trainer):
    for scale in ("all", "channel"):
        module = tiny_module(latent_scale=scale)
        make_trainer().validate(module, batches[:4])
        with torch.no_grad():
            posteriors = [module.eval().autoencoder.posterior(batch.pixels) for batch in batches[:4]]
        mean = torch.cat([posterior.mean for posterior in posteriors])
        variance = torch.cat([posterior.log_variance.exp() for posterior in posteriors])
        axes = (0, 2, 3, 4) if scale == "channel" else (0, 1, 2, 3, 4)
        total = mean.var(axes, unbiased=False) + variance.mean(axes)  # law of total variance
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean.mean(axes), torch.zeros_like(total), rtol=0, atol=1e-4)
        assert (module.autoencoder.latent_scale.unique().numel() == 1) == (scale == "all")


def test_a_scale_can_be_kept(batches, make_trainer):
    module = tiny_module(latent_scale="keep")
    make_trainer().validate(module, batches[:1])
    assert module.autoencoder.latent_scale.unique().tolist() == pytest.approx([0.18215])


def test_validation_reconstructs(batches, make_trainer):
    module = tiny_module(perceptual=LPIPS("vgg"))
    trainer = make_trainer()
    trainer.validate(module, batches[:1])
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        pixels = batches[0].pixels
        shown = module.eval().autoencoder.decode(module.autoencoder.encode(pixels))
    assert found["val/l1"] == pytest.approx(float(l1_loss(shown, pixels)), rel=1e-3)
    error = (shown.clamp(-1, 1) - pixels).square().mean((1, 3, 4))
    assert found["val/psnr"] == pytest.approx(float((10 * (4 / error).log10()).mean()), rel=1e-3)
    assert {"val/loss", "val/ssim", "val/lpips", "val/kl", "val/wavelet", "val/latent_std"} <= found.keys()


def test_originals_beside_reconstructions(batches, make_trainer, tmp_path):
    pictures = Reconstructions(str(tmp_path / "previews"), count=3)
    trainer = make_trainer(max_steps=2, val_check_interval=2, check_val_every_n_epoch=None, callbacks=[pictures])
    trainer.fit(tiny_module(), batches, batches[:2])
    assert len(pictures._videos) == 6 and pictures._labels[:2] == ["original: a a moves", "reconstruction: a a moves"]
    assert (tmp_path / "previews" / "step-000002.png").is_file()
    assert (tmp_path / "previews" / "step-000002.mp4").is_file()


def test_reconstructions_need_something_reconstructed(make_module, make_batch, make_trainer):
    with pytest.raises(UserError, match=r"callbacks\.reconstructions: VideoDiffusion reconstructs no clips"):
        trainer = make_trainer(callbacks=[Reconstructions("nowhere")])
        trainer.validate(make_module(), [make_batch("ab")])


class Plain(LearnedAutoencoder):
    """The least that training needs: one linear map of blocks, and no wavelet bands."""

    def __init__(self) -> None:
        super().__init__(2, Stride(1, 4, 4))
        self.down, self.up = nn.Conv3d(3, 4, (1, 4, 4), (1, 4, 4)), nn.ConvTranspose3d(2, 3, (1, 4, 4), (1, 4, 4))

    def encode_to_moments(self, pixels, requested=frozenset()):
        self.check_requested(requested)
        return EncoderOutput(Posterior(*self.down(pixels).chunk(2, dim=1)))

    def decode_z(self, z, requested=frozenset()):
        self.check_requested(requested)
        return DecoderOutput(self.up(z))

    def last_decoder_weight(self):
        return self.up.weight


def test_another_learned_autoencoder_trains(batches, make_trainer):
    watch, weights = Watch(), LossWeights(wavelet=0.0, kl=1e-3)
    module = tiny_module(autoencoder=Plain(), weights=weights)
    trainer = make_trainer(max_steps=4, callbacks=[watch])
    trainer.fit(module, batches)
    assert watch.notes == [(1, "G"), (2, "D"), (3, "G"), (4, "D")]
    assert "train/adaptive_weight" in trainer.callback_metrics and "train/wavelet" not in trainer.callback_metrics
    make_trainer().validate(module, batches[:2])
    with torch.no_grad():
        posterior = module.eval().autoencoder.posterior(torch.cat([batch.pixels for batch in batches[:2]]))
    total = posterior.mean.var(unbiased=False) + posterior.log_variance.exp().mean()
    torch.testing.assert_close(total, torch.ones(()), rtol=1e-4, atol=1e-4)


def test_bands_of_one_that_has_none_cannot_be_compared():
    with pytest.raises(UserError, match=r"task\.weights\.wavelet=0\.1: Plain has no wavelet .*wavelet=0\."):
        tiny_module(autoencoder=Plain())


@pytest.mark.parametrize("autoencoder", [Identity(), Haar(4, 4, 4, 0.3)])
def test_nothing_to_train(autoencoder):
    with pytest.raises(UserError, match=rf"{type(autoencoder).__name__} has nothing to train. Use autoencoder=wfvae"):
        tiny_module(autoencoder=autoencoder)


def test_bad_settings():
    with pytest.raises(UserError, match=r"data\.frames=6 does not fit WFVAE.*Use data\.frames=9"):
        tiny_module(clip_shape=(6, 16, 16))
    with pytest.raises(UserError, match=r"task\.accumulate=0"):
        tiny_module(accumulate=0)
    with pytest.raises(UserError, match=r"task\.latent_scale=some: choose all, channel, keep"):
        tiny_module(latent_scale="some")
    with pytest.raises(UserError, match=r"task\.weights\.kl=-1"):
        LossWeights(kl=-1)
    with pytest.raises(UserError, match=r"LPIPS \(alex\) reads frames of at least 31 .*task\.perceptual=null"):
        tiny_module(perceptual=LPIPS("alex"))


def test_the_smallest_bucket_decides_whether_lpips_can_read_it():
    plan = SimpleNamespace(stats=[BucketStats(Bucket(5, height, 64), 1, 1, 1, 1) for height in (64, 24)])
    data = SimpleNamespace(plan=plan, val_clips=1)
    check_data(data, LPIPS("vgg"), measures_latents=True)
    plan.stats.append(BucketStats(Bucket(5, 8, 64), 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"data\.height=8, data\.width=64: LPIPS \(vgg\) reads frames of at least 16"):
        check_data(data, LPIPS("vgg"), measures_latents=True)


def test_it_can_be_trained_further_but_not_as_another_model(batches, make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, plugins=[AtomicCheckpointIO()])
    trainer.fit(tiny_module(perceptual=LPIPS("vgg")), batches)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = load_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert not any(name.startswith("perceptual.") for name in stored)
    other = tiny_module(autoencoder=WFVAE(2, 5, 4, 4, 1, 1, 1))
    with pytest.raises(UserError, match="of another model"):
        make_trainer(plugins=[AtomicCheckpointIO()]).fit(other, batches, ckpt_path=tmp_path / "last.ckpt")


def test_cost_counts_both_ways_without_touching_the_model():
    module = tiny_module()
    before = weights_of(module.autoencoder)
    cost = module.cost()
    assert cost.tokens == 2 * 2 * 2 and cost.parameters == sum(p.numel() for p in module.autoencoder.parameters())
    assert module.cost((9, 16, 16)).forward_flops > cost.forward_flops > 0
    assert not changed(before, module.autoencoder)
