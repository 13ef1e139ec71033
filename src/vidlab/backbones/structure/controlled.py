"""A frozen denoiser with a structure controller beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from vidlab.backbones.base import VideoDenoiser
from vidlab.backbones.structure.controller import StructureController
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape, Stride
from vidlab.errors import UserError
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Full3D, LayerPlan

PARENT = "parent."


class StructureControlled(VideoDenoiser):
    """A denoiser that stays as it is, and what is trained to steer it by edges, depth or outlines.

    Behind block j of the parent F_j = P_j(E(C_S)) is added to the tokens of the latents (Open-Sora Plan, eq. 16). Where
    ``input.structure`` is None, and as long as the controller is new, it answers as the parent does, to the bit.

    Works with every parent that declares transformer blocks in its ``spec.blocks``. The parent's weights are kept with
    the controller's: a checkpoint is whole.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens.
        backbone: makes the parent, given ``latent``, ``text_width`` and ``settings``.
        channels: of the signals, ``StructureSignal.maps``.
        stride: pixels to a latent position.
        depth: K, transformer blocks of the controller.
        mlp_ratio: hidden width of its feed-forwards over D.
        layouts: token layout of each of its blocks; None is full attention.
        rope_base: base of its rotary frequencies.
        attention, ssm, control_channels, pooled_width: of the parent, where it takes them.

    Raises:
        UserError: a parent without transformer blocks, or sizes out of range.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        backbone: Callable[..., VideoDenoiser],
        channels: int,
        stride: Stride,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        layouts: LayerPlan | None = None,
        rope_base: float = 10000.0,
        attention: str | None = None,
        ssm: str | None = None,
        control_channels: Sequence[int] | None = None,
        pooled_width: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"conditioning.controller.depth={depth} must be at least 1.")
        told = {
            "attention": attention, "ssm": ssm, "control_channels": control_channels, "pooled_width": pooled_width
        }  # fmt: skip
        settings: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        self.parent = backbone(latent=latent, text_width=text_width, **settings).requires_grad_(False)
        spec = self.parent.spec
        if spec.blocks is None:
            raise UserError(
                f"conditioning=structure adds to the blocks of a transformer, and a {type(self.parent).__name__} "
                "declares none. Use model=full3d, skiparse, stiv, open_sora_plan or mmdim."
            )
        self.channels, self.stride = channels, stride
        self.controller = StructureController(
            channels, latent.channels, stride, spec.patch, spec.blocks, depth, mlp_ratio,
            layouts or LayerPlan([Full3D()], 0, 0), rope_base, attention_kernel(attention or "auto"),
        )  # fmt: skip
        self.spec = replace(
            spec, hidden_matrices=("controller.blocks.*",), reads_structure=True, trains_text=False,
            frozen=(PARENT + "*",), temporal=(), shares_sequence=False, remembers_history=False, released_as=None,
        )  # fmt: skip

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position."""
        signal = input.structure
        if signal is None:
            return self.parent(input)
        additions = self.controller(signal.maps, input.latents, signal.gain(input.t))
        return self.parent(replace(input, structure=None, additions=additions))

    @property
    @override
    def pretrained(self) -> VideoDenoiser:
        return self.parent

    @override
    def structure_shape(self, latent: LatentShape) -> tuple[int, int, int, int]:
        one = self.stride.frames - 1 if self.stride.first_frame_alone else 0
        frames = latent.frames * self.stride.frames - one
        return self.channels, frames, latent.height * self.stride.height, latent.width * self.stride.width

    @override
    def token_count(self, latent: LatentShape) -> int:
        return self.parent.token_count(latent)

    @override
    def micro_shapes(self, latent: LatentShape) -> dict[str, tuple[int, ...]]:
        return self.parent.micro_shapes(latent)

    @override
    def frozen_keys(self) -> set[str]:
        return {PARENT + name for name in self.parent.frozen_keys()}

    @override
    def inflated(self, name: str, weight: Tensor) -> Tensor | None:
        return self.parent.inflated(name.removeprefix(PARENT), weight)
