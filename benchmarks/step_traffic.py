"""Bytes that a block of each backbone moves per token, forward and backward, as a CUDA GPU under bf16 autocast would.

Eager: operators are counted as they are dispatched, on tensors without numbers. Compiled: Inductor's own count of bytes
and kernels. Beside them the fused minimum (``fused_minimum.py``). Runs anywhere, since nothing is computed.

    python benchmarks/step_traffic.py [--cases full3d paper/stiv_xl] [--eager-only] [--operators]
"""

import argparse
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cuda_rules import ATTENTION_OPERATORS, CUDARules
from fused_minimum import Block, minimum_bytes
from inductor_count import inductor_count
from model_cases import CASES, Case, described
from record import record
from vidlab.backbones.base import VideoDenoiser
from vidlab.backbones.harivo.temporal import TemporalModule
from vidlab.backbones.mmdim.dual_block import DualStreamBlock
from vidlab.backbones.mmdim.single_block import MMDiMBlock
from vidlab.backbones.open_sora_plan_block import OpenSoraPlanBlock
from vidlab.backbones.stiv_block import STIVBlock
from vidlab.clip import LatentShape
from vidlab.cost.flops import DenoiserCounter
from vidlab.cost.traffic import Traffic, TrafficCounter
from vidlab.diffusion.objective import InputShape
from vidlab.layers.attention import QKNorm
from vidlab.layers.block import DiTBlock
from vidlab.layers.layouts import GroupSkip, TokenLayout

BLOCKS = (DiTBlock, STIVBlock, OpenSoraPlanBlock, DualStreamBlock, MMDiMBlock, TemporalModule)


def main() -> None:
    """Count every case and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--operators", action="store_true", help="print what the largest operators move")
    parser.add_argument("--note", default="", help="a word for the rows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    rows = []
    for name in arguments.cases:
        for row in case_rows(name, CASES[name], not arguments.eager_only, arguments.operators):
            rows.append({"note": arguments.note, **row})
            print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
    print(record("step_traffic", rows))


def case_rows(name: str, case: Case, compiled: bool, operators: bool) -> Iterator[dict[str, str]]:
    """A row for each kind of block."""
    for kind, captured in captured_blocks(case):
        eager, by_operator = eager_traffic(captured)
        row = {"model": name, "block": kind, "tokens": captured.tokens, "width": captured.width}
        each = captured.tokens * captured.width
        row |= {"eager_kernels": eager.kernels, **per_number("eager", eager, each)}
        if compiled:
            made = inductor_traffic(captured)
            row |= {"compiled_kernels": made.kernels, **per_number("compiled", made, each)}
        least = least_bytes(captured)
        row["minimum"] = f"{least / each:.1f}" if least else ""
        if compiled and least:
            row["compiled_to_minimum"] = f"{made.bytes / least:.3f}"
        yield {key: str(value) for key, value in row.items()}
        if operators:
            for operator, moved in sorted(by_operator.items(), key=lambda pair: -pair[1])[:16]:
                print(f"      {operator:32} {moved / each:8.1f}")


def per_number(prefix: str, traffic: Traffic, each: int) -> dict[str, str]:
    """Bytes per token and channel, by what moves them."""
    parts = {"": traffic.bytes, "_products": traffic.products, "_attention": traffic.attention, "_other": traffic.other}
    return {f"{prefix}{part}": f"{moved / each:.1f}" for part, moved in parts.items()}


@dataclass
class Captured:
    """A block and what a forward pass of the model calls it with."""

    block: nn.Module
    inputs: tuple[Any, ...]
    tokens: int
    width: int
    text: int


def captured_blocks(case: Case) -> Iterator[tuple[str, Captured]]:
    """One of each kind of block, on the meta device."""
    backbone, text_width, latent, text = built(case)
    found: dict[str, Captured] = {}

    def note(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        layout = getattr(block, "layout", None)
        kind = type(block).__name__ + ("" if layout is None else f" {type(layout).__name__}")
        if kind not in found:
            x = inputs[1] if isinstance(block, DualStreamBlock) else inputs[0]
            channels = 1 if isinstance(block, TemporalModule) else -1
            found[kind] = Captured(block, inputs, x.numel() // x.shape[channels], x.shape[channels], text)

    for module in backbone.modules():
        if isinstance(module, BLOCKS):
            module.register_forward_pre_hook(note)
    counter = DenoiserCounter(backbone, text_width)
    with torch.enable_grad(), torch.device("meta"), CUDARules():
        tensors, rebuild = opened(counter._input(InputShape(latent), text, 0))
        backbone(rebuild([one.new_empty(case.batch, *one.shape[1:]) for one in tensors]))
    for module in backbone.modules():
        module._forward_pre_hooks.clear()
    yield from found.items()


def built(case: Case) -> tuple[VideoDenoiser, int, LatentShape, int]:
    """The denoiser on the meta device, the width of its text, its latents and the number of text tokens."""
    found = described(case)
    with torch.device("meta"):
        return found.build(attention="sdpa"), found.text_width, found.latent, found.text_tokens


def eager_traffic(captured: Captured) -> tuple[Traffic, dict[str, int]]:
    """What is dispatched forward and backward, and bytes by operator."""
    tensors, rebuild = opened(captured.inputs)
    names, parameters = zip(*captured.block.named_parameters(), strict=True)
    counter = TrafficCounter(ATTENTION_OPERATORS)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        own, fresh = on_cpu(parameters), on_cpu(tensors)
        with counter, CUDARules(counter=counter):
            weights = dict(zip(names, own, strict=True))
            made = outputs(torch.func.functional_call(captured.block, weights, rebuild(fresh)))
            made = [out for out in made if out.requires_grad]
            torch.autograd.backward(made, [torch.empty_like(out) for out in made])
    return counter.traffic, counter.by_operator


def inductor_traffic(captured: Captured) -> Traffic:
    """What Inductor would run."""
    tensors, rebuild = opened(captured.inputs)
    names, parameters = zip(*captured.block.named_parameters(), strict=True)

    def function(*inputs: Tensor) -> list[Tensor]:
        own = dict(zip(names, inputs[: len(names)], strict=True))
        with CUDARules():
            return outputs(torch.func.functional_call(captured.block, own, rebuild(inputs[len(names) :])))

    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        return inductor_count(function, on_cpu((*parameters, *tensors)))


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fake tensors on the CPU in the place of those on the meta device; constant tables have no gradient."""
    return [
        torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, requires_grad=one.requires_grad)
        for one in tensors
    ]


def least_bytes(captured: Captured) -> int | None:
    """The fused minimum; None for kinds that have no formula."""
    block = captured.block
    sizes = (captured.tokens, captured.width, 4 * captured.width, captured.text * captured.inputs[0].shape[0])
    if isinstance(block, DiTBlock):
        return minimum_bytes(
            Block(*sizes, qk_norm=isinstance(block.attention.q_norm, QKNorm), copies=copies(block.layout))
        )
    if isinstance(block, OpenSoraPlanBlock):
        return minimum_bytes(Block(*sizes, copies=copies(block.layout)))
    if isinstance(block, STIVBlock):
        several = 1 + (block.temporal is not None)
        inner = 2 if block.options.sandwich_norm else 0
        return minimum_bytes(Block(*sizes, attentions=several, qk_norm=block.options.qk_norm, inner_norms=inner))
    return None


def copies(layout: TokenLayout) -> int:
    """Tensors beside queries and keys that have to be copied: values before, and the result after."""
    return 2 if isinstance(layout, GroupSkip) else 0


def opened(inputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """All tensors in tuples and dataclasses, and what puts others in their places."""
    found: list[Tensor] = []

    def note(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
            return part
        return mapped(part, note)

    note(inputs)

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rest = iter(tensors)

        def put(part: Any) -> Any:
            return next(rest) if isinstance(part, Tensor) else mapped(part, put)

        return put(inputs)

    return found, rebuild


def mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """A tuple or dataclass with its parts changed; anything else as it is."""
    if isinstance(part, tuple):
        return tuple(change(one) for one in part)
    if isinstance(part, dict):
        return {name: change(one) for name, one in part.items()}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {field.name: change(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **values)
    return part


def outputs(made: Any) -> list[Tensor]:
    """The tensors that a block returns."""
    return [out for out in (made if isinstance(made, tuple) else (made,)) if isinstance(out, Tensor)]


if __name__ == "__main__":
    main()
