"""The one LightningModule of every video denoiser: it knows only the protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import LatentShape, VideoDenoiser
from vidlab.clip import ClipBatch, Conditions, DenoiserOutput, LossContext, TextEmbedding
from vidlab.cost import ModelCost, denoiser_cost
from vidlab.diffusion.objective import Corrupted, GaussianObjective
from vidlab.errors import UserError
from vidlab.losses.base import Regularizer
from vidlab.randomness import Draw
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.sampler import Sampler
from vidlab.text.base import TextEncoder
from vidlab.training.optimization import LrFactor, OptimizerFactory, trainable_parameters

Latents = Float[Tensor, "B C t h w"]
Pixels = Float[Tensor, "B 3 T H W"]

# Validation draws the same noise in every run, whatever its seed, so that runs compare.
VALIDATION_SEED = 0


class VideoDiffusion(LightningModule):
    """Trains a denoiser on clips with captions.

    Args:
        backbone: called with ``latent`` and ``text_width``, returns the denoiser.
        objective: what is learned.
        autoencoder: pixels to latents; frozen.
        text_encoder: captions to features; learned with the denoiser if it has trainable parameters.
        clip_shape: (frames, height, width) of training clips in pixels.
        optimizer: builds the optimiser.
        lr_schedule: gives the learning-rate factor by step.
        sampler: turns noise into latents for previews.
        guidance: guidance of previews.
        regularizers: named terms added to the objective.
        text_dropout: share of clips whose caption is replaced by "" in training, for guidance.
        log_snr_bins: log signal-to-noise ratios at which ``val/x0_mse`` is measured.
        seed: seed of every random number of training.
        compile: compile the denoiser with torch.compile.

    Logs:
        train/loss, train/<regularizer>, train/grad_norm per step; val/loss, val/x0_mse (pixels, mean over bins) and
        val/x0_mse/log_snr_<bin> per validation. Only val/x0_mse compares across objectives and autoencoders.
    """

    def __init__(
        self,
        backbone: Callable[..., VideoDenoiser],
        objective: GaussianObjective,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        clip_shape: tuple[int, int, int],
        optimizer: OptimizerFactory,
        lr_schedule: Any,
        sampler: Sampler,
        guidance: Guidance,
        regularizers: Mapping[str, Regularizer] | None = None,
        text_dropout: float = 0.1,
        log_snr_bins: Sequence[float] = (-4.0, -2.0, 0.0, 2.0, 4.0),
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= text_dropout <= 1:
            raise UserError(f"task.text_dropout={text_dropout} must lie in [0, 1].")
        self.make_backbone = backbone
        self.objective = objective
        self.autoencoder = autoencoder.requires_grad_(False)
        self.text_encoder = text_encoder
        self.latent = LatentShape(*autoencoder.latent_shape(*clip_shape))
        self.optimizer_factory = optimizer
        self.lr_schedule = lr_schedule
        self.sampler = sampler
        self.guidance = guidance
        self.regularizers = dict(regularizers or {})
        self.regularizer_modules = nn.ModuleDict(
            {name: term for name, term in self.regularizers.items() if isinstance(term, nn.Module)}
        )
        self.text_dropout = text_dropout
        self.log_snr_bins = tuple(float(value) for value in log_snr_bins)
        self.seed = seed
        self.compile_backbone = compile
        self.backbone: VideoDenoiser | None = None
        self._base_lrs: list[float] = []

    def configure_model(self) -> None:
        """Build the denoiser once; later calls do nothing."""
        if self.backbone is not None:
            return
        self.backbone = self.make_backbone(latent=self.latent, text_width=self.text_encoder.width)
        if self.compile_backbone:
            self.backbone.compile()

    def cost(self) -> ModelCost:
        """Parameters, tokens and FLOPs of the denoiser for one clip."""
        return denoiser_cost(self.make_backbone, self.latent, self.text_encoder.width)

    @property
    def denoiser(self) -> VideoDenoiser:
        """The built denoiser."""
        if self.backbone is None:
            raise RuntimeError("call configure_model() first")
        return self.backbone

    def draw(self, batch: ClipBatch, seed: int) -> Draw:
        """The batch's random numbers."""
        return Draw(seed=seed, keys=batch.keys, epochs=batch.epochs, device=batch.pixels.device)

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Latents:
        """Pixels to latents."""
        return self.autoencoder.encode(pixels)

    def training_step(self, batch: ClipBatch, batch_index: int) -> Tensor:
        """One batch: corrupt, predict, compare."""
        draw = self.draw(batch, self.seed)
        text = self.text_encoder(self.dropped_captions(batch.captions, draw))
        corrupted = self.objective.prepare(self.encode(batch.pixels), Conditions(text=text), draw)
        requested = frozenset[str]().union(*(term.requested for term in self.regularizers.values()))
        corrupted = replace(corrupted, input=replace(corrupted.input, requested=requested))
        output = self.denoiser(corrupted.input)
        loss = self.objective.loss(corrupted, output).total
        loss = loss + self._regularization(batch, corrupted, output, draw)
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        self._count(batch)
        return loss

    def _count(self, batch: ClipBatch) -> None:
        """The DataModule owns the position in the data; a batch counts once it has been used."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:
            datamodule.batches_consumed = batch.number + 1

    def dropped_captions(self, captions: Sequence[str], draw: Draw) -> list[str]:
        """Captions with a keyed share replaced by the null prompt ""."""
        dropped = (draw.uniform("text_dropout") < self.text_dropout).tolist()
        return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]

    def _regularization(
        self, batch: ClipBatch, corrupted: Corrupted, output: DenoiserOutput, draw: Draw
    ) -> Tensor | float:
        if not self.regularizers:
            return 0.0
        context = LossContext(batch, corrupted.input, output, corrupted.target, batch.number, draw)
        total = batch.pixels.new_zeros(())
        for name, term in self.regularizers.items():
            value = term(context)
            self.log(f"train/{name}", value.detach(), batch_size=len(batch))
            total = total + term.weight * value
        return total

    def validation_step(self, batch: ClipBatch, batch_index: int) -> None:
        """The same held-out clips, noise and noise levels each time."""
        draw = self.draw(batch, VALIDATION_SEED)
        x0 = self.encode(batch.pixels)
        conditions = Conditions(text=self.text_encoder(batch.captions))
        corrupted = self.objective.prepare_at(x0, draw.uniform("validation_t"), conditions, draw)
        loss = self.objective.loss(corrupted, self.denoiser(corrupted.input)).total
        errors = {f"val/x0_mse/log_snr_{value:g}": self._x0_error(batch, x0, value, conditions, draw)
                  for value in self.log_snr_bins}  # fmt: skip
        mean = torch.stack(list(errors.values())).mean()
        metrics = {"val/loss": loss, "val/x0_mse": mean, **errors}
        self.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))

    def _x0_error(
        self, batch: ClipBatch, x0: Latents, log_snr: float, conditions: Conditions, draw: Draw
    ) -> Float[Tensor, ""]:
        """Mean squared error in pixels of the x0 that the prediction implies, at one log SNR."""
        t = self.objective.schedule.t_at_log_snr(x0.new_full((len(batch),), log_snr))
        corrupted = self.objective.prepare_at(x0, t, conditions, draw)
        denoised = self.objective.denoised(self.denoiser(corrupted.input), corrupted.input)
        return (self.autoencoder.decode(denoised.x0) - batch.pixels).square().mean()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        noise: Latents,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pixels:
        """Videos for prompts, in [-1, 1].

        Args:
            prompts: one per video.
            noise: standard normal latents, one per video.
            sampler: instead of the configured one.
            guidance: instead of the configured one.
            progress: called with (steps done, steps).
        """
        conditions = {"text": self._condition(prompts), "null": self._condition([""] * len(prompts))}
        latents = (sampler or self.sampler).sample(
            self.denoiser, self.objective, guidance or self.guidance, noise, conditions, progress
        )
        return self.autoencoder.decode(latents).clamp(-1, 1)

    def _condition(self, prompts: Sequence[str]) -> Conditions:
        text: TextEmbedding = self.text_encoder(prompts)
        return Conditions(text=text)

    def configure_optimizers(self) -> Any:
        """The optimiser over trainable parameters and a schedule stepped per optimiser step."""
        optimizer = self.optimizer_factory.build(self)
        self._base_lrs = [group["lr"] for group in optimizer.param_groups]
        factor: LrFactor = self.lr_schedule.factor(self.trainer.max_steps)
        # a plain function: LambdaLR does not store it, so a resumed run follows the schedule of its own max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Take this run's rate and schedule from the first step on: a resumed optimiser holds those stored with it."""
        scheduler: Any = self.lr_schedulers()
        scheduler.base_lrs = list(self._base_lrs)
        for group, base, factor in zip(
            scheduler.optimizer.param_groups, self._base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["initial_lr"], group["lr"] = base, base * factor(scheduler.last_epoch)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the global norm to ``optimizer.clip_norm``, after callbacks have treated the gradients."""
        limit = self.optimizer_factory.clip_norm
        norm = nn.utils.clip_grad_norm_(trainable_parameters(self), limit if limit else float("inf"))
        self.log("train/grad_norm", norm)

    def transfer_batch_to_device(self, batch: ClipBatch, device: torch.device, dataloader_index: int) -> ClipBatch:
        """Batches know how to move."""
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen parts out: they are rebuilt from the configuration."""
        frozen = self._frozen_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parts of this model in, so that loading stays strict.

        Raises:
            UserError: the checkpoint is of another model.
        """
        own, frozen = self.state_dict(), self._frozen_keys()
        checkpoint["state_dict"] |= {key: own[key] for key in frozen}
        here = {name: tuple(value.shape) for name, value in own.items()}
        there = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        differing = [name for name in here | there if here.get(name) != there.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"The checkpoint is of another model: {len(differing)} parameters differ, the first is {name}, "
                f"{there.get(name, 'absent')} in the checkpoint and {here.get(name, 'absent')} here. Use the settings "
                "it was trained with; they are in config.yaml of its run folder."
            )

    def _frozen_keys(self) -> set[str]:
        keys = {f"autoencoder.{key}" for key in self.autoencoder.state_dict()}
        if not self.text_encoder.trainable:
            keys |= {f"text_encoder.{key}" for key in self.text_encoder.state_dict()}
        return keys
