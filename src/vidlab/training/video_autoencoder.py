"""The LightningModule of autoencoders: reconstruction against an adversary, the two trained in turn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.learned import LearnedAutoencoder
from vidlab.clip import ClipBatch
from vidlab.command_line import command, setting
from vidlab.cost import ModelCost, autoencoder_cost
from vidlab.errors import UserError
from vidlab.losses.adversarial import adaptive_weight, generator_loss, hinge_loss
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.reconstruction.ssim import SSIM
from vidlab.perceptual.lpips import LPIPS
from vidlab.randomness import KeyedRNG, seed_of
from vidlab.training.autoencoder.augmentation import mirrored
from vidlab.training.autoencoder.gan_step import GANOptimizerStep
from vidlab.training.autoencoder.latent_stats import LatentMoments
from vidlab.training.autoencoder.perceptual import check_size
from vidlab.training.autoencoder.reconstruction import LossWeights, Reconstruction, reconstruct
from vidlab.training.module import ClipModule, CliSelection
from vidlab.training.optimization.clipping import AdaptiveClipper
from vidlab.training.optimization.optimizers import LrFactor, OptimizerFactory

SCALES = ("all", "channel", "keep")
SSIM_SMALLEST = 11


class VideoAutoencoder(ClipModule):
    """Trains an autoencoder on clips as WF-VAE was (Open-Sora Plan, arXiv 2412.00131, section 2.1, equations 2 to 4).

    The generator minimises, with sums over a frame's or a clip's values as published,

        |x - x'| + lambda_lpips LPIPS + lambda_KL KL + lambda_WL WL + lambda_adv L_adv,

    where lambda_adv is ``weights.adversarial`` times the ratio of the gradients of the first two terms and of L_adv at
    the decoder's last layer. The discriminator minimises the hinge loss.

    A *step* is a batch fetched, whoever uses it: ``trainer.max_steps``, intervals, the learning-rate schedules and
    ``trainer.global_step`` count batches. Before ``discriminator_start`` every step is the generator's; from then on
    even steps are the generator's and odd ones the discriminator's. With ``accumulate``, as many successive batches
    make one turn and one optimiser step.

    Each validation measures mean and standard deviation of the latents of the held-out clips, with the averaged weights
    where there are any, and stores the scale and shift that give them unit variance in the autoencoder; mean and
    standard deviation of every channel, before scaling, are in checkpoints as ``latents``.

    Args:
        autoencoder: a ``LearnedAutoencoder``; all of it is trained.
        clip_shape: (frames, height, width) of training clips in pixels.
        optimizer: builds the optimiser of the autoencoder.
        lr_schedule: factor on both rates by step.
        weights: of the terms.
        perceptual: the LPIPS network, frozen; None trains and validates without.
        discriminator: the adversary; None trains without.
        discriminator_optimizer: builds the optimiser of the adversary; None takes ``optimizer`` without its
            ``lr_multipliers``, which name parameters of the autoencoder.
        discriminator_start: step from which there is an adversary.
        mirror: train on clips mirrored, turned and reversed in time at random (``mirrored``); validation never does.
        accumulate: batches to an optimiser step; Lightning leaves accumulation to modules with two optimisers.
        adaptive_clipping: leaves outlying gradients out, with statistics for each of the two; None does not.
        latent_scale: ``all``: one scale and shift for all channels; ``channel``: one for each; ``keep``: those that the
            autoencoder came with.
        seed: seed of every random number of training.

    Logs:
        per step of the generator train/loss, train/reconstruction (absolute error and LPIPS together), train/l1 (mean
        absolute error of a value), train/lpips (mean of frames), train/kl, train/wavelet, train/grad_norm, and with an
        adversary train/adversarial and train/adaptive_weight; per step of the discriminator train/discriminator,
        train/logits_real, train/logits_fake, train/discriminator_grad_norm; per validation val/loss (the generator's
        without the adversary), val/psnr (dB), val/ssim, val/lpips, val/l1, val/kl, val/wavelet, val/latent_std (before
        scaling).

    Raises:
        UserError: an autoencoder without anything to train, or a setting out of range.
    """

    results = ("val/loss", "val/psnr", "val/ssim", "val/lpips", "val/l1")

    def __init__(
        self,
        autoencoder: Autoencoder,
        clip_shape: tuple[int, int, int],
        optimizer: OptimizerFactory,
        lr_schedule: Any,
        weights: LossWeights | None = None,
        perceptual: LPIPS | None = None,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        discriminator_start: int = 0,
        mirror: bool = False,
        accumulate: int = 1,
        adaptive_clipping: AdaptiveClipper | None = None,
        latent_scale: str = "all",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not isinstance(autoencoder, LearnedAutoencoder):
            raise UserError(
                f"autoencoder: {type(autoencoder).__name__} has nothing to train. Use autoencoder=wfvae_nano, or "
                "another that is learned."
            )
        for name, value, least in (("accumulate", accumulate, 1), ("discriminator_start", discriminator_start, 0)):
            if value < least:
                raise UserError(f"task.{name}={value} must be {least} or more.")
        if latent_scale not in SCALES:
            raise UserError(f"task.latent_scale={latent_scale}: choose {', '.join(SCALES)}.")
        check_size(perceptual, *clip_shape[1:])
        autoencoder.latent_shape(*clip_shape)
        self.autoencoder: Any = autoencoder
        self.clip_shape = clip_shape
        self.optimizer_factory, self.lr_schedule = optimizer, lr_schedule
        self.discriminator_optimizer = discriminator_optimizer or replace(optimizer, lr_multipliers={})
        self.mirror = mirror
        self.weights = weights or LossWeights()
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.discriminator_start, self.accumulate = discriminator_start, accumulate
        self.latent_scale, self.seed = latent_scale, seed
        self.players = [GANOptimizerStep("generator", autoencoder, optimizer.clip_norm, adaptive_clipping)]
        if discriminator is not None:
            clip_norm = self.discriminator_optimizer.clip_norm
            self.players.append(GANOptimizerStep("discriminator", discriminator, clip_norm, adaptive_clipping))
        self._base_lrs = []
        self._keys: list[str] = []
        self._moments: LatentMoments | None = None
        self.latents: dict[str, list[float]] = {}

    def configure_model(self) -> None:
        """Nothing is left to build."""

    def configure_optimizers(self) -> Any:
        """An optimiser for each network, and a schedule for each, stepped by the batch."""
        optimizers = [self.optimizer_factory.build(self.autoencoder)]
        optimizers += [self.discriminator_optimizer.build(player.network) for player in self.players[1:]]
        self._base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        factor: LrFactor = self.lr_schedule.factor(self.trainer.max_steps)
        # a plain function: LambdaLR does not store it, so a resumed run follows the schedule of its own max_steps
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(o, lambda step: factor(step)) for o in optimizers]

    def setup(self, stage: str) -> None:
        """Refuse settings of the Trainer that Lightning leaves to modules with two optimisers.

        Raises:
            UserError: naming the setting that does the same here.
        """
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: two optimisers take turns "
                f"here. Use task.accumulate={self.trainer.accumulate_grad_batches}."
            )
        if self.trainer.gradient_clip_val is not None:
            raise UserError(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}: two optimisers take turns here. Use "
                "optimizer.clip_norm and task.discriminator_optimizer.clip_norm."
            )

    def on_fit_start(self) -> None:
        """Refuse what cannot work before anything is computed.

        Raises:
            UserError: no held-out clips, buckets too small for LPIPS, a precision that scales gradients, or DDP that
                waits for unused ones.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.perceptual is not None and hasattr(data, "plan"):
            for stats in data.plan.stats:
                check_size(self.perceptual, stats.bucket.height, stats.bucket.width)
        if self.latent_scale != "keep" and getattr(data, "val_clips", 1) == 0:
            raise UserError(
                "data.val_clips=0: the scale of the latents is measured on held-out clips. Hold some out, or set "
                "task.latent_scale=keep."
            )
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                f"precision={self.trainer.precision} scales gradients, which clipping here cannot see through. Use "
                "precision=bf16-mixed or precision=32-true."
            )
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise UserError(
                "trainer.strategy: a step trains one of two networks, and DDP would wait for the gradients of the "
                "other. Use trainer.strategy=ddp_find_unused_parameters_true."
            )

    def on_train_start(self) -> None:
        """Follow the schedule of this run, and go on with gradients that wait."""
        for player in self.players:
            player.take_up()
        self.use_this_schedule(self._schedulers())

    def training_step(self, batch: ClipBatch, batch_index: int) -> dict[str, Tensor]:
        """One batch, for the network whose turn it is.

        Returns:
            ``loss``, detached: the optimiser step has been taken; ``per_clip``, (B,), the absolute error of each clip.
        """
        step = self.trainer.global_step
        turn = self.turn(step)
        if self.mirror:
            batch = replace(batch, content=mirrored(batch.pixels, self._draw(batch)))
        with self._random_numbers_of(batch):
            loss, shown = (self._discriminate if turn else self._generate)(batch)
        self.manual_backward(loss / self.accumulate)
        self._keys += batch.keys
        if (step + 1) % self.accumulate == 0:
            self._play(turn, step)
        for scheduler in self._schedulers():
            scheduler.step()
        self._advance()
        self.count(batch)
        return {"loss": loss.detach(), "per_clip": (shown - batch.pixels).abs().mean(dim=(1, 2, 3, 4))}

    def adversary_present(self, step: int) -> bool:
        """Whether there is an adversary at a step."""
        return self.discriminator is not None and step >= self.discriminator_start

    def turn(self, step: int) -> int:
        """Whose turn a step is: 0 the generator's, 1 the discriminator's."""
        turns = step // self.accumulate
        return turns % 2 if self.adversary_present(turns * self.accumulate) else 0

    def reconstruct(self, batch: ClipBatch, draw: KeyedRNG | None) -> Reconstruction:
        """Encode and decode; with ``draw`` a sample of the posterior, otherwise its mean."""
        return reconstruct(self.autoencoder, batch.pixels, self.weights, self.perceptual, draw)

    def _generate(self, batch: ClipBatch) -> tuple[Float[Tensor, ""], Float[Tensor, "B 3 T H W"]]:
        """The loss, and the reconstruction without its graph."""
        made = self.reconstruct(batch, self._draw(batch))
        found = {**made.terms, "reconstruction": made.reconstruction}
        loss = made.total
        if self.adversary_present(self.trainer.global_step):
            assert self.discriminator is not None
            with _frozen(self.discriminator):
                adversarial = generator_loss(self.discriminator(made.decoded.pixels))
            weight = adaptive_weight(
                made.reconstruction, adversarial, self.autoencoder.last_layer(), self.weights.adversarial
            )
            loss = loss + weight * adversarial
            found |= {"adversarial": adversarial, "adaptive_weight": weight}
        self._log({**found, "loss": loss}, self.trainer.global_step)
        return loss, made.decoded.pixels.detach()

    def _discriminate(self, batch: ClipBatch) -> tuple[Float[Tensor, ""], Float[Tensor, "B 3 T H W"]]:
        """As ``_generate``."""
        assert self.discriminator is not None
        with torch.no_grad():
            posterior = self.autoencoder.analyse(batch.pixels).posterior
            noise = self._draw(batch).normal("posterior", tuple(posterior.mean.shape[1:]))
            fake_pixels = self.autoencoder.synthesise(posterior.sample(noise.to(posterior.mean))).pixels
        real, fake = self.discriminator(batch.pixels), self.discriminator(fake_pixels)
        loss = hinge_loss(real, fake)
        self._log(
            {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}, self.trainer.global_step
        )
        return loss, fake_pixels

    def _play(self, turn: int, step: int) -> None:
        """The optimiser step; past Lightning's wrapper, which would count it, because batches are counted."""
        player, optimizer = self.players[turn], self._optimizers()[turn]
        strategy = self.trainer.strategy
        found = player.play(optimizer, lambda o: strategy.optimizer_step(o, closure=_done), self._keys)
        self._keys = []
        prefix = "discriminator_" if turn else ""
        self._log({f"{prefix}{name}": torch.tensor(value) for name, value in found.items()}, step)

    def _advance(self) -> None:
        """Count the batch: ``trainer.global_step`` is Lightning's count of manual optimiser steps."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def validation_step(self, batch: ClipBatch, batch_index: int) -> dict[str, Tensor]:
        """Reconstruct held-out clips from the posterior's mean.

        Returns:
            ``reconstruction``, (B, 3, T, H, W) in [-1, 1].
        """
        made = self.reconstruct(batch, draw=None)
        moments = LatentMoments.of(made.analysis.posterior)
        self._moments = moments if self._moments is None else self._moments + moments
        pixels, shown = batch.pixels.float(), made.decoded.pixels.float().clamp(-1, 1)
        found = {**made.terms, "loss": made.total, "psnr": PSNR().score(shown, pixels, batch.captions).mean()}
        if min(batch.size[1:]) >= SSIM_SMALLEST:
            found["ssim"] = SSIM().score(shown, pixels, batch.captions).mean()
        metrics = {f"val/{name}": value.float() for name, value in found.items()}
        self.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return {"reconstruction": shown}

    def on_validation_epoch_end(self) -> None:
        """Measure the latents of all ranks' clips, and scale them to unit variance."""
        if self._moments is None:
            return
        sums = self.trainer.strategy.reduce(self._moments.sums.to(torch.float64), reduce_op="sum")
        moments, self._moments = LatentMoments(sums), None
        self.log("val/latent_std", moments.together.std.item())
        self.latents = {"mean": moments.mean.tolist(), "std": moments.std.tolist()}
        if self.latent_scale != "keep":
            found = moments.scale(by_channel=self.latent_scale == "channel")
            self.autoencoder.set_latent_scale(found.scale, found.shift)

    def averaged(self) -> dict[str, nn.Parameter]:
        """The autoencoder's parameters: an adversary is not averaged."""
        return {f"autoencoder.{name}": parameter for name, parameter in self.autoencoder.named_parameters()}

    def averaged_steps(self) -> int:
        """The generator's steps."""
        return self.players[0].steps

    def cost(self, clip_shape: tuple[int, int, int] | None = None) -> ModelCost:
        """Encoding and decoding; losses and adversary come on top."""
        return autoencoder_cost(self.autoencoder, *(clip_shape or self.clip_shape))

    @override
    def tags(self) -> dict[str, str]:
        return {"objective": "autoencoder"}

    def reader_of_pixels(self) -> str:
        """An autoencoder in training."""
        return "task=autoencoder"

    def next_commands(self, folder: Path, named: CliSelection) -> list[str]:
        """Score it; train on its latents."""
        return [
            command("evaluate.py", setting("autoencoders", [folder, "haar", "trilinear"]), *named.data, *named.allow),
            command(
                "train.py",
                "model=skiparse",
                *named.autoencoder,
                setting("autoencoder.path", folder),
                f"data.frames={self.clip_shape[0]}",
            ),
        ]

    def frozen_keys(self) -> set[str]:
        """LPIPS, which is read from its own file."""
        return set() if self.perceptual is None else {f"perceptual.{key}" for key in self.perceptual.state_dict()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the players know, with gradients that wait for more."""
        super().on_save_checkpoint(checkpoint)
        unfinished = self.trainer.global_step % self.accumulate != 0
        checkpoint["latents"] = self.latents
        checkpoint["players"] = {player.name: player.state(unfinished) for player in self.players}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the players.

        Raises:
            UserError: the checkpoint is of another model.
        """
        super().on_load_checkpoint(checkpoint)
        self.latents = checkpoint.get("latents", {})
        for player in self.players:
            player.restore(checkpoint["players"][player.name])

    @contextmanager
    def _random_numbers_of(self, batch: ClipBatch) -> Iterator[None]:
        """Dropout's numbers follow from the batch, so that a resumed run draws the same."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed_of(self.seed, batch.number, self.global_rank, "dropout"))
            yield

    def _draw(self, batch: ClipBatch) -> KeyedRNG:
        return batch.draw(self.seed)

    def _log(self, values: Mapping[str, Tensor], step: int) -> None:
        """To callbacks, and to loggers at this step alone: Lightning would repeat them at the other player's steps.

        ``trainer.log_every_n_steps`` counts pairs of turns, so that an even number leaves neither player out.
        """
        found = {f"train/{name}": value.detach().float() for name, value in values.items()}
        self.log_dict(found, logger=False, batch_size=1)
        if step // (2 * self.accumulate) % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            for logger in self.loggers:
                logger.log_metrics({name: float(value) for name, value in found.items()}, step=step)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.trainer.optimizers)

    def _schedulers(self) -> list[Any]:
        found: Any = self.lr_schedulers()
        return found if isinstance(found, list) else [found]


def _done() -> None:
    """Losses and gradients were computed before."""


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Gradients pass through, and none is kept."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
