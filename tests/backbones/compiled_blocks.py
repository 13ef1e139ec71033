"""Graphs that ``compile=true`` makes of each backbone: run in a process of its own, as shape checks cannot be traced.

    python compiled_blocks.py NAME STRIDE DEPTH ...

prints for each depth what dynamo counted after each STRIDE-th step, and fails where compiled blocks compute something
else.
"""

import sys
from collections.abc import Callable

import torch
from torch._dynamo.utils import counters

from vidlab.backbones.base import VideoDenoiser
from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim import MMDiM
from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.stiv import STIV
from vidlab.clip import DenoiserInput, LatentShape, TextEmbedding
from vidlab.layers.layouts import Full3D, GroupSkip, LayerPlan, SingleSkip
from vidlab.layers.mixers.attention_mixer import AttentionMixer

LATENT, TEXT = LatentShape(2, 2, 4, 4), 8
SKIPARSE = LayerPlan((SingleSkip(2), GroupSkip(2)), full_first=1, full_last=1)
SIZES = {"latent": LATENT, "text_width": TEXT, "width": 24, "heads": 2, "patch": (1, 2, 2)}
BACKBONES: dict[str, Callable[[int], VideoDenoiser]] = {
    "dit": lambda depth: DiT(layouts=SKIPARSE, depth=depth, activation_checkpointing=True, **SIZES),
    "full3d": lambda depth: DiT(layouts=LayerPlan((Full3D(),)), depth=depth, **SIZES),
    "stiv": lambda depth: STIV(depth=depth, **SIZES),
    "open_sora_plan": lambda depth: OpenSoraPlan(layouts=SKIPARSE, depth=depth, **SIZES),
    "mmdim": lambda depth: MMDiM(mixer=AttentionMixer, depth=depth - 2, dual_depth=2, **SIZES),
}
# (frames, rows, columns) of latents and tokens of the captions: two lengths of text, then two more buckets
STEPS = (((2, 4, 4), (3, 5)), ((2, 4, 4), (4, 2)), ((2, 4, 4), (7, 6)), ((4, 8, 4), (4, 2)), ((2, 8, 8), (3, 6)))


def step(model: VideoDenoiser, shape: tuple[int, int, int], captions: tuple[int, ...]) -> torch.Tensor:
    """Gradients of a pass over clips of a shape whose captions have so many tokens."""
    torch.manual_seed(0)
    longest, clips = max(captions), len(captions)
    mask = torch.arange(longest) < torch.tensor(captions)[:, None]
    text = TextEmbedding(torch.randn(clips, longest, TEXT), mask, torch.randn(clips, TEXT), captions)
    latents, t = torch.randn(clips, LATENT.channels, *shape), torch.rand(clips)
    model.zero_grad()
    model(DenoiserInput(latents, t, t, text)).prediction.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def graphs(name: str, stride: int, depth: int) -> list[int]:
    """How many there are after each of ``STEPS[::stride]``."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = BACKBONES[name](depth).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    plain = [step(model, *one) for one in STEPS[::stride]]
    model.compile_blocks(backend="eager")
    found = []
    for one, expected in zip(STEPS[::stride], plain, strict=True):
        torch.testing.assert_close(step(model, *one), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        found.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"], counters["graph_break"]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in map(int, sys.argv[3:]):
        print(*graphs(sys.argv[1], int(sys.argv[2]), number))
