"""Mamba layers that start from trained attention: C, B and x from the matrices of queries, keys and values.

M4V starts its Mamba blocks from FLUX's attention as "The Mamba in the Llama" (arXiv 2408.15237) does: C <- W_q,
B <- W_k, x <- W_v. Without softmax, decay, convolution and second branch the recurrence is then causal linear
attention, y_t = sum over s <= t of (q_t . k_s) v_s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlab.backbones.mmdim.model import MMDiM
from vidlab.errors import UserError
from vidlab.layers.mixers.ssd_mixer import SSDMixer

# Rows of ``SSDMixer.in_proj`` for those of a fused projection of queries, keys and values, in this order.
TO = ("C", "B", "x")


@dataclass(frozen=True)
class Taken:
    """A weight of this model made of another's.

    Args:
        weight: whole; where a part stays as drawn it has the drawn numbers there.
        origins: the names it was made of.
        part: which part of the weight that is; "" for all of it.
    """

    weight: Tensor
    origins: tuple[str, ...]
    part: str = ""


def from_attention(model: MMDiM, weights: Mapping[str, Tensor]) -> dict[str, Taken]:
    """What this model can take of another's weights, by the name it has here.

    Two kinds of model are known by their names: MM-DiM itself with ``mixer=attention``, whose other weights have the
    same names, and the DiT of ``model=full3d``. Of that the first blocks become the video streams of the dual-stream
    blocks and the next the single-stream blocks: attention and feed-forward as they are, and of the two gates of a
    block that of its attention.

    Args:
        model: with ``mixer=ssd`` in its blocks, keys and queries as wide as values.
        weights: of the trained model.

    Raises:
        UserError: weights of neither kind, or a mixer that attention's matrices do not fit.
    """
    mixers = {f"blocks.{number}.mixer": block.get_submodule("mixer") for number, block in enumerate(model.blocks)}
    for mixer in mixers.values():
        if not isinstance(mixer, SSDMixer) or mixer.sizes["B"] != model.width:
            raise UserError(
                "init=mamba_from_attention needs mixer=ssd whose keys and queries are as wide as attention's: "
                "mixer.groups=null mixer.state=null."
            )
    if "blocks.0.mixer.qkv.weight" in weights:
        renamed = _of_mmdim(weights)
        attention = {name: f"{name}.qkv" for name in mixers}
    elif "blocks.0.attention.qkv.weight" in weights:
        renamed = _of_dit(model, weights)
        first = len(model.dual_blocks)
        attention = {name: f"blocks.{first + number}.attention.qkv" for number, name in enumerate(mixers)}
    else:
        raise UserError(
            "init.run has no attention that a state space could begin from: give a run of model=mmdim mixer=attention, "
            "or of model=full3d."
        )
    for name, mixer in mixers.items():
        if f"{attention[name]}.weight" in weights:
            renamed |= _projection(name, mixer, attention[name], weights)
    return renamed


def _of_mmdim(weights: Mapping[str, Tensor]) -> dict[str, Taken]:
    return {name: Taken(weight, (name,)) for name, weight in weights.items() if ".mixer." not in name}


def _projection(name: str, mixer: torch.nn.Module, origin: str, weights: Mapping[str, Tensor]) -> dict[str, Taken]:
    """``in_proj`` with queries, keys and values in their rows, the other rows as drawn."""
    assert isinstance(mixer, SSDMixer)
    found = {}
    for kind, own in mixer.in_proj.named_parameters():
        source = f"{origin}.{kind}"
        _check_shape(source, weights[source], (3 * mixer.sizes["x"], *own.shape[1:]))
        whole = own.detach().clone()
        for row, part in zip(TO, weights[source].chunk(3), strict=True):
            whole[mixer.rows[row]] = part.to(whole)
        found[f"{name}.in_proj.{kind}"] = Taken(whole, (source,), "rows C, B, x")
    return found


def _of_dit(model: MMDiM, weights: Mapping[str, Tensor]) -> dict[str, Taken]:
    whole = ("embed.", "controls.", "text_tokens.", "head.")
    found = {name: Taken(weight, (name,)) for name, weight in weights.items() if name.startswith(whole)}
    found |= {
        f"condition.{name}": Taken(weight, (name,)) for name, weight in weights.items() if name.startswith("time.")
    }
    found |= dict(_modulation("head_modulation", "head_modulation", "head_table.offset", 2, weights))
    for number in range(len(model.dual_blocks) + len(model.blocks)):
        origin, single = f"blocks.{number}", number - len(model.dual_blocks)
        if f"{origin}.attention.qkv.weight" in weights:
            found |= dict(_stream(number, origin, weights) if single < 0 else _single(single, origin, weights))
    return found


def _modulation(
    name: str, shared: str, table: str, parts: int, weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Taken]]:
    """The first ``parts`` of a shared modulation with a block's own table, as a modulation of the block's own."""
    weight, bias = weights[f"{shared}.weight"], weights[f"{shared}.bias"]
    rows = parts * weight.shape[1]
    yield f"{name}.weight", Taken(weight[:rows], (f"{shared}.weight",))
    yield f"{name}.bias", Taken((bias + weights[table])[:rows], (f"{shared}.bias", table))


def _stream(number: int, origin: str, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Taken]]:
    """The video stream of a dual-stream block."""
    target = f"dual_blocks.{number}.video"
    for own, other in (
        ("qkv", "attention.qkv"), ("out", "attention.out"), ("q_norm", "attention.q_norm"),
        ("k_norm", "attention.k_norm"), ("mlp", "mlp"),
    ):  # fmt: skip
        for name, weight in weights.items():
            if name.startswith(f"{origin}.{other}."):
                yield name.replace(f"{origin}.{other}", f"{target}.{own}"), Taken(weight, (name,))
    yield from _modulation(f"{target}.modulation", "modulation", f"{origin}.table.offset", 6, weights)


def _single(number: int, origin: str, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Taken]]:
    """A single-stream block, its mixer aside: W [Y, M] is the output of attention beside that of the feed-forward."""
    target = f"blocks.{number}"
    for kind in ("weight", "bias"):
        first, attention, last = (f"{origin}.{part}.{kind}" for part in ("mlp.0", "attention.out", "mlp.2"))
        yield f"{target}.mlp.0.{kind}", Taken(weights[first], (first,))
        pair = (weights[attention], weights[last])
        joint = torch.cat(pair, dim=1) if kind == "weight" else pair[0] + pair[1]
        yield f"{target}.out.{kind}", Taken(joint, (attention, last))
    yield from _modulation(f"{target}.modulation", "modulation", f"{origin}.table.offset", 3, weights)


def _check_shape(name: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    if weight.shape != shape:
        raise UserError(
            f"init: {name} is {tuple(weight.shape)} and must be {shape} here: the widths differ. "
            "Set model.backbone.width and heads to those of the run."
        )
