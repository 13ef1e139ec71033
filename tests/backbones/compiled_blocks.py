"""Graphs that ``compile=true`` makes of each backbone: run in a process of its own, as shape checks cannot be traced.

    python compiled_blocks.py NAME

prints what dynamo counted, and fails where compiled blocks compute something else.
"""

import sys

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
# depth, and kinds of blocks, each a graph
BACKBONES = {
    "dit": lambda: DiT(layouts=SKIPARSE, depth=6, activation_checkpointing=True, **SIZES),
    "full3d": lambda: DiT(layouts=LayerPlan((Full3D(),)), depth=6, **SIZES),
    "stiv": lambda: STIV(depth=4, **SIZES),
    "open_sora_plan": lambda: OpenSoraPlan(layouts=SKIPARSE, depth=6, **SIZES),
    "mmdim": lambda: MMDiM(mixer=AttentionMixer, depth=3, dual_depth=2, **SIZES),
}


def step(model: VideoDenoiser, captions: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Gradients of a pass over clips whose captions have so many tokens."""
    torch.manual_seed(seed)
    longest, clips = max(captions), len(captions)
    mask = torch.arange(longest) < torch.tensor(captions)[:, None]
    text = TextEmbedding(torch.randn(clips, longest, TEXT), mask, torch.randn(clips, TEXT), captions)
    latents, t = torch.randn(clips, LATENT.channels, LATENT.frames, LATENT.height, LATENT.width), torch.rand(clips)
    model.zero_grad()
    model(DenoiserInput(latents, t, t, text)).prediction.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    """Count graphs over steps with captions of different lengths."""
    torch.manual_seed(0)
    model = BACKBONES[sys.argv[1]]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    lengths = [(3, 5), (4, 2), (7, 6), (9, 2), (6, 3)]
    plain = [step(model, captions) for captions in lengths]
    model.compile_blocks(backend="eager")
    graphs = []
    for captions, expected in zip(lengths, plain, strict=True):
        torch.testing.assert_close(step(model, captions), expected, rtol=1e-4, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    print(*graphs, "breaks", sum(counters["graph_break"].values()))


if __name__ == "__main__":
    main()
