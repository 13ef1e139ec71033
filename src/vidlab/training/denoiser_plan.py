"""A denoiser before it is built: what it declares, what other parts fix of it, and what its steps cost."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vidlab.backbones.base import BackboneSpec, VideoDenoiser
from vidlab.clip import ClipBatch, DenoiserInput, LatentShape
from vidlab.conditioning.base import Conditioning
from vidlab.cost.flops import DenoiserCounter, ModelCost, StepInput, mean_cost
from vidlab.diffusion.objective import InputShape, Objective
from vidlab.errors import UserError
from vidlab.parallel.exchange import Team
from vidlab.training.encoding import TrainingEncoders

KERNELS = {"attention": "attention kernel", "ssm": "state-space kernel"}
# those that run on the meta device
ON_META = {"attention": "sdpa", "ssm": "torch"}


class DenoiserPlan:
    """Reads the spec of a denoiser from a copy on the meta device, which holds no numbers, and fixes its settings.

    Args:
        backbone: called with ``latent``, ``text_width``, and ``attention``, ``ssm`` and ``control_channels`` where its
            spec says that it takes them; returns the denoiser.
        latent: the latents it is built for.
        text_width: width of text features.
        pooled_width: width of pooled text.
        kernels: the kernels asked for, by setting, ``attention`` and ``ssm``.
        control_channels: channels of each part of the controls that the conditioning gives.
        conditioning: its name, for messages.

    Raises:
        UserError: the denoiser cannot take what the other parts give, or lacks what it reads.
    """

    def __init__(
        self,
        backbone: Callable[..., VideoDenoiser],
        latent: LatentShape,
        text_width: int,
        pooled_width: int,
        kernels: Mapping[str, str],
        control_channels: tuple[int, ...],
        conditioning: str,
    ) -> None:
        self._backbone, self._latent, self._text_width = backbone, latent, text_width
        self.spec: BackboneSpec = self._hollow().spec
        taken = {"attention": self.spec.takes_attention, "ssm": self.spec.takes_ssm}
        self._check_kernels(kernels, taken)
        self._check_controls(control_channels, conditioning)
        self._settings: dict[str, Any] = {name: kernel for name, kernel in kernels.items() if taken[name]}
        self._settings |= self._pooled(pooled_width)
        if control_channels:
            self._settings["control_channels"] = control_channels
        self._counter: DenoiserCounter | None = None

    def _hollow(self, **settings: Any) -> VideoDenoiser:
        with torch.device("meta"):
            return self._backbone(latent=self._latent, text_width=self._text_width, **settings)

    def _pooled(self, width: int) -> dict[str, int]:
        """The setting that takes pooled text of another width than that of the tokens."""
        built = self.spec.pooled_width or self._text_width
        if built == width or not self.spec.reads_pooled_text:
            return {}
        if self.spec.pooled_width is None:
            raise UserError(
                f"The text encoder gives tokens {self._text_width} wide and one vector {width} wide, and the model "
                "reads both at one width. Use a text_encoder of one width, such as text_encoder=transformers, or "
                "model=mmdim."
            )
        if built != self._text_width:
            raise UserError(
                f"model.backbone.pooled_width={built}: the vector of the text encoder is {width} wide. Leave it null."
            )
        return {"pooled_width": width}

    def _check_kernels(self, kernels: Mapping[str, str], taken: Mapping[str, bool]) -> None:
        for name, kernel in kernels.items():
            if kernel != "auto" and not taken[name]:
                raise UserError(f"{name}={kernel}: the model has no {KERNELS[name]} to choose. Use {name}=auto.")

    def _check_controls(self, control_channels: tuple[int, ...], conditioning: str) -> None:
        if self.spec.control_channels and not control_channels:
            raise UserError(
                f"The model reads controls (model.backbone.control_channels={list(self.spec.control_channels)}) and "
                f"conditioning={conditioning} gives none. Add conditioning=masked_video."
            )
        if control_channels and not self.spec.reads_controls:
            raise UserError(
                f"conditioning={conditioning} gives control channels, and the model has no "
                "control_channels to read them. Use conditioning=frame_replacement, or another model."
            )

    def check_sharing(self, processes: int) -> None:
        """Refuse to share the tokens of a clip where the denoiser cannot.

        Args:
            processes: that would share a clip.

        Raises:
            UserError: it cannot.
        """
        if processes > 1 and not self.spec.shares_sequence:
            self._hollow().share_sequence(Team(0, processes))

    def check_requested(self, features: frozenset[str]) -> None:
        """Refuse features that regularizers read and the denoiser does not have.

        Raises:
            UserError: naming both.
        """
        unknown = sorted(features - self.spec.features)
        if unknown:
            has = ", ".join(sorted(self.spec.features)) or "none"
            raise UserError(f"losses: {', '.join(unknown)} are asked of the model, whose features are {has}.")

    def build(self) -> VideoDenoiser:
        """The denoiser with its settings."""
        return self._backbone(latent=self._latent, text_width=self._text_width, **self._settings)

    def cost(self, read: StepInput) -> ModelCost:
        """The cost of one clip of a step that reads just that."""
        return self._counted().cost(read)

    def mean_cost(
        self, objective: Objective, latent: LatentShape, read: Callable[[InputShape], StepInput]
    ) -> ModelCost:
        """The mean cost of one clip of these latents over what the objective gives the denoiser to read.

        Args:
            objective: what it is trained for.
            latent: of the clip.
            read: what else is read with each of its shapes.
        """
        return mean_cost([(shape.share, self.cost(read(shape))) for shape in objective.input_shapes(latent)])

    def feature_shapes(
        self, requested: frozenset[str], objective: Objective, text_tokens: int
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of features that are tensors, for one clip of the planned latents at its largest.

        Args:
            requested: their names.
            objective: what the denoiser is trained for.
            text_tokens: tokens of a caption, padding included.
        """
        shapes = objective.input_shapes(self._latent)
        largest = max(shapes, key=lambda shape: shape.latent.frames * shape.latent.height * shape.latent.width)
        return self._counted().feature_shapes(
            requested, largest, text_tokens, sum(self._settings.get("control_channels", ()))
        )

    def _counted(self) -> DenoiserCounter:
        if self._counter is None:
            kernels = {name: kernel for name, kernel in ON_META.items() if name in self._settings}
            with torch.inference_mode(False):
                hollow = self._hollow(**{**self._settings, **kernels})
            self._counter = DenoiserCounter(hollow, self._text_width)
        return self._counter


class TrainingCosts:
    """What training steps cost: as planned before a batch has been seen, and as the last one was computed.

    Args:
        plan: the denoiser.
        objective: what it is trained for.
        encoders: of clips and captions.
        conditioning: what else it is told.
        requested: the features that regularizers ask it for.
    """

    def __init__(
        self,
        plan: DenoiserPlan,
        objective: Objective,
        encoders: TrainingEncoders,
        conditioning: Conditioning,
        requested: frozenset[str],
    ) -> None:
        self._plan, self._objective, self._encoders = plan, objective, encoders
        self._conditioning, self._requested = conditioning, requested
        self._last: StepInput | None = None

    def planned(self, latent: LatentShape) -> ModelCost:
        """The cost of one clip of these latents, in the mean over what the objective gives the denoiser to read."""
        channels = sum(self._conditioning.control_channels(latent, self._encoders.autoencoder.stride))
        tokens = self._encoders.planned_text_tokens
        return self._plan.mean_cost(self._objective, latent, lambda shape: self.reads(shape, tokens, channels))

    def reads(self, shape: InputShape, text_tokens: int, control_channels: int) -> StepInput:
        """What the cost of a training step depends on, where it reads latents of this shape."""
        trains_text = self._encoders.text_encoder.trainable and self._plan.spec.trains_text
        return StepInput(shape, text_tokens, control_channels, self._requested, trains_text)

    def saw(self, input: DenoiserInput) -> None:
        """Note what a step reads: it is the last one from now on."""
        past = tuple(LatentShape(*part.latents.shape[1:]) for part in input.history)
        shape = InputShape(LatentShape(*input.latents.shape[1:]), past)
        controls = 0 if input.controls is None else input.controls.channels.shape[1]
        self._last = self.reads(shape, 0 if input.text is None else input.text.tokens.shape[1], controls)

    @property
    def last(self) -> ModelCost | None:
        """The cost of one clip of the last step; None before the first."""
        return None if self._last is None else self._plan.cost(self._last)

    def beside(self, batch: ClipBatch) -> dict[str, int]:
        """FLOPs of encoding the last batch, by what encodes; nothing before the first."""
        return {} if self._last is None else self._encoders.flops_of(batch, self._last.text_tokens)
