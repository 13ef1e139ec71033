"""Weights of a CLIP by open_clip's names, read into the model of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlab.errors import UserError
from vidlab.tensors import read_plain_data, read_tensors, refuse_non_finite

AGAIN = "Fetch it again."

# Towers: open_clip's prefix of the blocks, and the tower in transformers.
TOWERS = (("visual.transformer.", "vision_model."), ("transformer.", "text_model."))
# Within a block: open_clip's names, and those of transformers.
BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
# Products from the left in open_clip, from the right in transformers.
TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# A buffer that some files hold: the causal mask.
UNUSED = ("attn_mask",)


def read_open_clip(model: Any, file: Path | None, key: str) -> None:
    """Put the weights of a file into a ``CLIPModel`` of transformers.

    Args:
        model: of the architecture of the weights.
        file: ``.safetensors``, or a checkpoint of torch with tensors under ``state_dict`` or at its top.
        key: the setting that named the file, for messages.

    Raises:
        UserError: no file is named or found, it cannot be read, or it is of another architecture.
    """
    if file is None or not file.is_file():
        raise UserError(f"{key}={file}: give the file of weights by open_clip's names, such as HPS_v2.1_compressed.pt.")
    found = from_open_clip(_read(file, key))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    wrong = [n for n in sorted({*expected, *found}) if n not in found or expected.get(n) != found[n].shape]
    if wrong:
        raise UserError(f"{key}={file} does not fit the CLIP beside it: {wrong[0]}, and {len(wrong) - 1} others.")
    refuse_non_finite(found, f"{key}={file}", AGAIN)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()}, strict=False)


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the names of transformers; names that are not known stay as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in UNUSED:
            continue
        if name in TURNED:
            found[TURNED[name]] = tensor.T.contiguous()
        elif name in WHOLE:
            found[WHOLE[name]] = tensor
        else:
            found |= _of_block(name, tensor)
    return found


def _of_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for prefix, tower in TOWERS:
        number, _, rest = name.removeprefix(f"{prefix}resblocks.").partition(".")
        if not name.startswith(f"{prefix}resblocks."):
            continue
        layer, (part, _, kind) = f"{tower}encoder.layers.{number}", rest.rpartition(".")
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = rest.rpartition("_")[2]
            names = (f"{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            return dict(zip(names, tensor.chunk(3), strict=True))
        if part in BLOCK:
            return {f"{layer}.{BLOCK[part]}.{kind}": tensor}
    return {name: tensor}


def _read(file: Path, key: str) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file, AGAIN)
    content = read_plain_data(file, f"{AGAIN} HPS_v2_compressed.pt and HPS_v2.1_compressed.pt hold tensors alone.")
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{key}={file} holds no weights by name.")
    return {name.removeprefix("module."): value for name, value in weights.items()}
