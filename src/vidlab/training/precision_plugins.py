"""How Lightning trains in each precision; its own plugins expect batches of bare tensors, and convert frozen parts."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from typing_extensions import override

from vidlab.backbones.base import VideoDenoiser
from vidlab.errors import UserError
from vidlab.precision import PRECISIONS


def precision_plugin(precision: str, accelerator: str) -> Precision:
    """The plugin of a precision, one of ``PRECISIONS`` but ``auto``.

    Raises:
        UserError: one that cannot train, or not on this accelerator.
    """
    device = "cpu" if accelerator == "cpu" else "cuda"
    if precision not in PRECISIONS or precision == "auto":
        raise UserError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
    if precision == "16-mixed" and device == "cpu":
        raise UserError(
            "precision=16-mixed: torch scales losses for float16 on a GPU only. On a CPU use precision=bf16-mixed or "
            "precision=32-true."
        )
    make: dict[str, Callable[[], Precision]] = {
        "32-true": Precision,
        "64-true": DoubleDenoiser,
        "bf16-true": lambda: Bfloat16Weights(device),
        "bf16-mixed": lambda: MixedPrecision("bf16-mixed", device),
        "16-mixed": lambda: ScaledPrecision("16-mixed", device),
    }
    return make[precision]()


class Bfloat16Weights(MixedPrecision):
    """``bf16-true``: trained weights, their gradients and the optimizer's state in bfloat16, computed as bf16-mixed.

    What is frozen (the autoencoder, a pretrained text encoder) and buffers keep their own precision, clips stay in
    float32. Layers that autocast computes in float32 still are. Averaged weights are float32. An update below 1/256 of
    a weight is lost in rounding: high learning rates, or bf16-mixed, whose weights are float32, go further.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)
        self.precision = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Trained parameters to bfloat16."""
        _convert(module, torch.bfloat16)
        return module

    @override
    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=False)


class DoubleDenoiser(Precision):
    """``64-true``: trained weights and what they compute in float64; clips, random numbers and frozen parts as ever,
    but for a frozen denoiser that a trained one steers.

    Norms and rotations that layers compute in float32 in every precision stay so.
    """

    precision = "64-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Trained parameters to float64, and what the denoiser reads.

        Raises:
            UserError: for a module without a denoiser.
        """
        denoisers = [part for part in module.modules() if isinstance(part, VideoDenoiser)]
        if not denoisers:
            raise UserError("precision=64-true trains denoisers only. Use precision=32-true.")
        _convert(module, torch.float64)
        for denoiser in denoisers:
            if denoiser.spec.frozen:  # a parent that computes between parts that are trained
                denoiser.double()
            if _inputs_in_double not in denoiser._forward_pre_hooks.values():  # a module is set up more than once
                denoiser.register_forward_pre_hook(_inputs_in_double)
        return module


def _inputs_in_double(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(in_double(one) for one in inputs)


def in_double(record: Any) -> Any:
    """A record of the denoiser's input, those within it too, with float64 where it has float32."""
    if isinstance(record, Tensor):
        return record.double() if record.is_floating_point() else record
    if isinstance(record, Mapping):
        return {name: in_double(value) for name, value in record.items()}
    if isinstance(record, tuple):
        return tuple(in_double(value) for value in record)
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{one.name: in_double(getattr(record, one.name)) for one in fields(record)})
    return record


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Trained parameters to another type, all but those that act on running statistics, which are float32."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)


class ScaledPrecision(MixedPrecision):
    """``16-mixed``: float16 with a loss scaler, which drops steps whose gradients overflow until it has its scale.

    Gradients are unscaled before callbacks and clipping see them, those of optimizers that could unscale themselves
    (``fused=true``) too.

    Attributes:
        skipped_steps: steps that were dropped so far: weights, their average and the schedule have not moved.
        skipped_in_a_row: those since the last that was taken.
    """

    def __init__(self, precision: Any, device: str, scaler: "torch.amp.GradScaler | None" = None) -> None:
        super().__init__(precision, device, scaler)
        self.skipped_steps = self.skipped_in_a_row = 0

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Unscale, let callbacks and clipping see the gradients, step unless they overflowed, and adapt the scale."""
        assert self.scaler is not None
        result = closure()
        if result is None and model.automatic_optimization:  # no loss, no gradient
            self._after_closure(model, optimizer)
            return result
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        found = self._overflowed(optimizer)
        stepped = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        self.skipped_steps += found
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if found else 0
        return stepped

    def _overflowed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an element of a gradient, scaled, was not finite; waits for the device, as the scaler does."""
        assert self.scaler is not None
        found = self.scaler._found_inf_per_device(optimizer)
        return any(float(value) > 0 for value in found.values())

    def state_dict(self) -> dict[str, Any]:
        """The scale, and what has been dropped."""
        counts = {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row}
        return {"scaler": super().state_dict(), **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint was written."""
        super().load_state_dict(state_dict["scaler"])
        self.skipped_steps, self.skipped_in_a_row = state_dict["skipped_steps"], state_dict["skipped_in_a_row"]
