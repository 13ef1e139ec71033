"""Temporal modules as the MotionAdapter of diffusers, where that computes the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vidlab.backbones.harivo.model import HARIVO
from vidlab.backbones.harivo.temporal import TemporalAttention, TemporalModule
from vidlab.errors import UserError

# Names inside a temporal module, and those inside one of diffusers.
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
BLOCK = "transformer_blocks.0"
NAMES = {
    "norm": "norm", "into": "proj_in", "out": "proj_out", "attentions.0.norm": f"{BLOCK}.norm1",
    "attentions.1.norm": f"{BLOCK}.norm2", "feed_forward.norm": f"{BLOCK}.norm3",
    "feed_forward.up": f"{BLOCK}.ff.net.0.proj", "feed_forward.down": f"{BLOCK}.ff.net.2",
    **{f"attentions.{n}.{a}": f"{BLOCK}.attn{n + 1}.{b}" for n in range(2) for a, b in ATTENTION.items()},
}  # fmt: skip
POSITIONS = 32  # of frames, at least: the default of diffusers


def write_motion_adapter(model: HARIVO, folder: Path, frames: int) -> str:
    """Write the temporal modules for ``MotionAdapter.from_pretrained``; returns what was written, for a person.

    Args:
        model: with the weights to write.
        folder: made if it is not there.
        frames: of the clips it was trained on; longer ones are refused by diffusers.

    Raises:
        UserError: diffusers would compute something else with them.
    """
    reasons = list(differences(model))
    if reasons:
        raise UserError(
            f"a MotionAdapter of diffusers would compute something else: {'; '.join(reasons)}. Export without "
            "--motion-adapter keeps all of the model."
        )
    adapter = motion_adapter(model, frames)
    adapter.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in adapter.parameters())
    return f"{len(model.temporal)} temporal modules of {count:,} parameters"


def differences(model: HARIVO) -> Iterator[str]:
    """What of the model has no place in a MotionAdapter or is computed in another way, each with its setting."""
    if not model.temporal_on:
        yield "temporal=false leaves its temporal modules out"
    if len(model.mapping):
        yield f"it has a mapping network before the UNet (mapping_layers={len(model.mapping)}; 0 has none)"
    if model.frame_tokens is not None:
        yield f"it has tokens of each frame (frame_tokens={model.frame_tokens.count}; 0 has none)"
    if any(module.per_frame for module in _modules(model)):
        yield "temporal_norm=frame takes statistics of each frame, and diffusers those of the clip (temporal_norm=clip)"
    if {"down", "up"} - {place.split("_")[0] for place in model.temporal}:
        yield "diffusers has modules in all of down and up (temporal_parts=[down,mid,up])"
    groups = {module.norm.num_groups for module in _modules(model)} | {int(model.body.config["norm_num_groups"])}
    if len(groups) > 1:
        yield f"norms of its levels have {sorted(groups)} groups, and those of diffusers one number, that of the UNet"


def motion_adapter(model: HARIVO, frames: int) -> Any:
    """The MotionAdapter of diffusers with the model's weights."""
    from diffusers import MotionAdapter

    config = model.body.config
    first = _modules(model)[0]
    attention = first.attentions[0]
    assert isinstance(attention, TemporalAttention)
    adapter = MotionAdapter(
        block_out_channels=tuple(config["block_out_channels"]),
        motion_layers_per_block=config["layers_per_block"],
        motion_num_attention_heads=attention.heads,
        motion_norm_num_groups=first.norm.num_groups,
        motion_max_seq_length=max(POSITIONS, frames),
        use_motion_mid_block="mid" in model.temporal,
    )
    weights = {
        f"{_place(at)}.{NAMES[inside]}.{leaf}": value
        for at, module in model.temporal.items()
        for name, value in module.state_dict().items()
        for inside, leaf in [name.rsplit(".", 1)]
    }
    expected = {name for name, _ in adapter.named_parameters()}
    assert expected == weights.keys()
    with torch.no_grad():
        adapter.load_state_dict(weights, strict=False)  # positions are no weights
    return adapter.eval()


def _modules(model: HARIVO) -> list[TemporalModule]:
    return [module for module in model.temporal.values() if isinstance(module, TemporalModule)]


def _place(at: str) -> str:
    if at == "mid":
        return "mid_block.motion_modules.0"
    part, level, place = at.split("_")
    return f"{part}_blocks.{level}.motion_modules.{place}"
