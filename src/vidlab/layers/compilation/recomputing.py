"""Activation checkpointing: which activations of a block are kept for the backward pass, and which computed again."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vidlab.errors import UserError

NONE, BLOCK, SELECTIVE = "none", "block", "selective"
ATEN = torch.ops.aten
# matrix products and attention: nearly all the work of a block, and a fraction of its activations
KEPT = frozenset({
    ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default, ATEN.convolution.default,
    ATEN._scaled_dot_product_flash_attention.default, ATEN._scaled_dot_product_efficient_attention.default,
    ATEN._scaled_dot_product_cudnn_attention.default, ATEN._scaled_dot_product_flash_attention_for_cpu.default,
})  # fmt: skip


def checked(activation_checkpointing: bool | str) -> str:
    """One of ``none``, ``block`` and ``selective``; True is ``block`` and False ``none``.

    Raises:
        UserError: it is something else.
    """
    name = (
        (BLOCK if activation_checkpointing else NONE)
        if isinstance(activation_checkpointing, bool)
        else activation_checkpointing
    )
    if name not in (NONE, BLOCK, SELECTIVE):
        raise UserError(
            f"model.backbone.activation_checkpointing={activation_checkpointing}: choose none, block (computes each "
            "block twice) or selective (keeps its matrix products and attention), or false and true for the first two."
        )
    return name


def recomputed(kind: str, block: Callable[..., Any], *inputs: Any) -> Any:
    """What a block makes of inputs; in the backward pass it is computed again, except for what ``kind`` keeps.

    Losses and gradients are those of a block that keeps everything, to the last bit.
    """
    if kind == SELECTIVE:
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=_contexts)
    return checkpoint(block, *inputs, use_reentrant=False)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
