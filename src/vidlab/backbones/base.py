"""The base class of video denoisers, and the spec in which each declares its patch, inputs, features and kernels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidlab.clip import Controls, DenoiserInput, DenoiserOutput, LatentShape
from vidlab.errors import UserError
from vidlab.features.memory import Memory
from vidlab.layers.compilation.blocks import compile_blocks
from vidlab.layers.compilation.recomputing import NONE, SELECTIVE, checked, recomputed
from vidlab.layers.layouts import Grid
from vidlab.layers.sequence_parallel.sequence import WHOLE, SequenceSharing, WholeSequence
from vidlab.layers.sequence_parallel.shares import SequenceLayers
from vidlab.parallel.exchange import Team


@dataclass(frozen=True)
class BlockSpec:
    """The transformer blocks of a denoiser, all of one width.

    Args:
        count: how many there are.
        width: D of their tokens.
        heads: attention heads.
    """

    count: int
    width: int
    heads: int


@dataclass(frozen=True)
class BackboneSpec:
    """What a denoiser declares, for the parts around it to read; nobody guesses it from its arguments.

    Args:
        patch: latent frames, rows and columns to a token.
        reads_controls: it takes the argument ``control_channels``, the channels of each part of ``input.controls``.
        control_channels: those it was built for.
        takes_attention: it takes the argument ``attention``, the name of an attention kernel.
        takes_ssm: it takes the argument ``ssm``, the name of a state-space kernel.
        reads_pooled_text: ``input.text.pooled`` is used; what is learned for it alone is not trained where it is not.
        pooled_width: width of the pooled text that it was built for, of a model that takes it as the argument
            ``pooled_width``; None: it is read as wide as the tokens.
        reads_history: ``input.history`` is read: earlier frames, seen by later ones and not the other way round.
        remembers_history: text and history are read without the noise level, so that ``remember`` serves all of them.
        features: names of what can be requested besides the prediction; see ``vidlab.features``.
        hidden_matrices: shell-style patterns of parameter names between the first and the last layer, whose matrices
            and kernels suit Muon: by default those of blocks.
        temporal: patterns of parameter names of its temporal attention and of what else only videos have, which an
            image model may lack.
        blocks: its transformer blocks, where it adds ``input.additions`` behind each of them.
        reads_structure: ``input.structure`` is read.
        trains_text: a text encoder without weights of its own is trained with it.
        frozen: patterns of parameters that are not trained and come from the run it starts from.
        shares_sequence: several processes can share the tokens of a clip: ``sequence_layers`` is there.
        released_as: the published system in whose form ``write_released`` and ``read_released`` handle weights.
    """

    patch: tuple[int, int, int] = (1, 1, 1)
    reads_controls: bool = False
    control_channels: tuple[int, ...] = ()
    takes_attention: bool = False
    takes_ssm: bool = False
    reads_pooled_text: bool = True
    pooled_width: int | None = None
    reads_history: bool = False
    remembers_history: bool = False
    features: frozenset[str] = frozenset()
    hidden_matrices: tuple[str, ...] = ("*blocks.*",)
    temporal: tuple[str, ...] = ()
    blocks: BlockSpec | None = None
    reads_structure: bool = False
    trains_text: bool = True
    frozen: tuple[str, ...] = ()
    shares_sequence: bool = False
    released_as: str | None = None


@dataclass(frozen=True)
class ReleasedWeights:
    """Weights of a published folder by the names of the model that reads them, and what its user should know."""

    weights: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


class VideoDenoiser(nn.Module, ABC):
    """Reads noisy latents and conditions, returns a prediction in the shape of the latents.

    Args of every subclass begin with ``latent: LatentShape`` and ``text_width: int``; the rest is its own, and what it
    declares in ``spec``, of the class or set by its constructor. The spec is read from a copy on the meta device before
    the model is built.
    """

    spec: BackboneSpec = BackboneSpec()
    _recomputes: str = NONE
    sharing: SequenceSharing | None = None

    @abstractmethod
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target.

        Raises:
            ValueError: a requested feature this backbone does not have, or latents it cannot take.
        """

    @property
    def activation_checkpointing(self) -> bool | str:
        """What of its blocks is computed again in the backward pass: False for nothing, ``block`` or ``selective``."""
        return False if self._recomputes == NONE else self._recomputes

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: bool | str) -> None:
        self._recomputes = checked(value)

    @property
    def hidden_matrices(self) -> tuple[str, ...]:
        """Patterns of the names of matrices that Muon may take."""
        return self.spec.hidden_matrices

    def temporal_parameters(self) -> frozenset[str]:
        """Names of the parameters that ``spec.temporal`` declares."""
        patterns = self.spec.temporal
        return frozenset(name for name, _ in self.named_parameters() if any(fnmatch(name, one) for one in patterns))

    @abstractmethod
    def token_count(self, latent: LatentShape) -> int:
        """Tokens per clip that the backbone processes for latents of this shape."""

    def remember(self, input: DenoiserInput) -> Memory:
        """What becomes of text and history before ``input.latents``, for ``input.remembered`` of any noise level.

        Raises:
            ValueError: ``spec.remembers_history`` is False.
        """
        raise ValueError(f"this {type(self).__name__} reads its history anew at each noise level")

    def check_requested(self, requested: frozenset[str]) -> None:
        """Refuse features that this backbone does not have.

        Raises:
            ValueError: naming them, and those there are.
        """
        features = self.spec.features
        unknown = requested - features
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no feature {sorted(unknown)}; it has {sorted(features) or 'none'}"
            )

    def micro_shapes(self, latent: LatentShape) -> dict[str, tuple[int, ...]]:
        """What ``input.micro`` must hold for latents of this shape, by name, the shape for one clip."""
        return {}

    def structure_shape(self, latent: LatentShape) -> tuple[int, int, int, int] | None:
        """Channels, frames, rows and columns of ``input.structure`` for latents of this shape; None for none."""
        return None

    @property
    def pretrained(self) -> "VideoDenoiser":
        """The denoiser that published weights are for."""
        return self

    def sequence_layers(self) -> SequenceLayers:
        """Its attentions as ``share_sequence`` sees them.

        Raises:
            ValueError: ``spec.shares_sequence`` is False.
        """
        raise ValueError(f"{type(self).__name__} does not share the tokens of a clip among processes")

    def share_sequence(self, team: Team) -> None:
        """Share the tokens of each clip with the other processes of a team, in training.

        Outputs are then on every process of the team, and gradients are such that their mean over processes is that of
        the one loss. In evaluation a process works alone.

        Raises:
            UserError: it cannot, see ``spec.shares_sequence``.
        """
        if not self.spec.shares_sequence:
            raise UserError(
                f"trainer.sequence_parallel={team.size}: {type(self).__name__} does not share the tokens of a clip "
                "among processes; DiT, OpenSoraPlan and STIV do. Use trainer.sequence_parallel=1: more devices take "
                "more clips."
            )
        self.sharing = SequenceSharing(team, self.sequence_layers())

    def sequence_of(self, grid: Grid, visible: Bool[Tensor, "L L"] | None, device: torch.device) -> WholeSequence:
        """The tokens of a forward pass: shared in training where ``share_sequence`` was called, else whole.

        Args:
            grid: of the latents.
            visible: True where a token (row) sees another (column) of a longer sequence; None without a history.
            device: where tokens are.
        """
        if self.sharing is None or not self.training:
            return WHOLE
        return self.sharing.of_grid(grid, device) if visible is None else self.sharing.of_visible(visible)

    def frozen_keys(self) -> set[str]:
        """Names of parameters and buffers that are not trained and come from the configuration, never from a file."""
        return set()

    def inflated(self, name: str, weight: Tensor) -> Tensor | None:
        """A weight of an image model in the shape this video model needs, or None where there is no such rule."""
        return None

    def write_released(self, folder: Path) -> None:
        """Write the weights as the system of ``spec.released_as`` is published.

        Raises:
            UserError: the folder already holds weights, or there is no such form.
        """
        raise UserError(f"A {type(self).__name__} is not published in any form of its own.")

    def write_companions(self, folder: Path) -> dict[str, str]:
        """Write parts of the weights once more in forms that other programs read; returns, for a person, what they are.

        Args:
            folder: of an export, beside the weights.
        """
        return {}

    def read_released(self, folder: Path) -> ReleasedWeights:
        """Weights for this model from a folder in the form of ``spec.released_as``.

        Raises:
            UserError: they are damaged or of another architecture, or there is no such form.
        """
        raise UserError(f"A {type(self).__name__} is not published in any form of its own.")

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """Apply a block; with ``activation_checkpointing`` its activations are recomputed in the backward pass."""
        if self._recomputes != NONE and self.training:
            return recomputed(self._recomputes, block, *inputs)
        return block(*inputs)

    def repeated_blocks(self) -> Iterator[nn.Module]:
        """The blocks that ``compile=true`` compiles one by one: those of ``nn.ModuleList`` attributes named blocks."""
        for name, child in self.named_children():
            if name.endswith("blocks") and isinstance(child, nn.ModuleList):
                yield from child

    def compile_blocks(self, **settings: Any) -> None:
        """Compile the repeated blocks, or the whole network where it has none.

        Args:
            settings: of ``torch.compile``, such as its mode.

        Raises:
            UserError: activations are kept selectively.
        """
        if self._recomputes == SELECTIVE:
            raise UserError(
                "model.backbone.activation_checkpointing=selective keeps operators by name, which compile=true joins "
                "to others. A compiled block chooses itself what it keeps: use activation_checkpointing=none or block."
            )
        blocks = list(self.repeated_blocks())
        if blocks:
            compile_blocks(blocks, **settings)
        else:
            self.compile(**settings)


def split_controls(
    controls: Controls | None, control_channels: Sequence[int]
) -> tuple[Float[Tensor, "B K T H W"], ...]:
    """The parts of the control channels a backbone embeds one by one.

    Raises:
        ValueError: controls of another width than the backbone was built for, or none where it needs them.
    """
    found = 0 if controls is None else controls.channels.shape[1]
    if found != sum(control_channels):
        raise ValueError(f"the backbone was built for {sum(control_channels)} control channels and got {found}")
    return () if controls is None else controls.channels.split(list(control_channels), dim=1)
