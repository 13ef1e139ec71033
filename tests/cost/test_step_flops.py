"""What is counted on the meta device is what a real training step computes, model by model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidlab.clip import ClipBatch, DenoiserOutput
from vidlab.diffusion.objective import InputShape
from vidlab.features import FrameAttention
from vidlab.lab.compose import build_module
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.layers.mixers import ssd
from vidlab.layers.mixers.flops import FLOP_FORMULAS
from vidlab.layers.mixers.ssd_span import Scratch, Span, span_backward, span_forward
from vidlab.randomness import KeyedRNG
from vidlab.training.video_diffusion import VideoDiffusion

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = ("precision=32-true", "model.backbone.width=48", "model.backbone.heads=2")
HARIVO = ("model=harivo", "model.backbone.width=32", "model.backbone.heads=4", "data.frames=2")


def composed(*overrides: str) -> VideoDiffusion:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        module = build_module(compose("train", [*SMALL, *overrides]))
    module.configure_model()
    module.log = lambda *_, **__: None
    module.count = lambda batch: None
    return module.train()


def batch(module: VideoDiffusion, captions: tuple[str, ...]) -> ClipBatch:
    keys = tuple("abc"[: len(captions)])
    pixels = KeyedRNG(7, keys, (0,) * len(keys)).uniform("pixels", (3, *module.clip_shape)) * 2 - 1
    return ClipBatch(pixels, captions, keys, (0,) * len(keys), 0, (8.0,) * len(keys))


def cut(output: DenoiserOutput) -> tuple[DenoiserOutput, list[Tensor], list[Tensor]]:
    """The same output as leaves, so that a loss of it ends there; the tensors of both."""
    made: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        made.append(x)
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    def of(feature):
        if isinstance(feature, Tensor):
            return leaf(feature)
        return tuple(FrameAttention(leaf(part.q), leaf(part.k)) for part in feature)

    prediction = leaf(output.prediction)
    return DenoiserOutput(prediction, {n: of(feature) for n, feature in output.features.items()}), made, leaves


def real_flops(module: VideoDiffusion, clips: ClipBatch) -> int:
    """Of the denoiser in one step: its forward pass, and its backward pass from the gradients of the step's losses."""
    forward, backward = (FlopCounterMode(display=False, custom_mapping=dict(FLOP_FORMULAS)) for _ in range(2))
    parts: list[tuple[list[Tensor], list[Tensor]]] = []
    run = module.denoiser.forward

    def counted(input):
        text = replace(input.text, **{
            name: getattr(input.text, name).detach().requires_grad_(module.text_encoder.trainable)
            for name in ("tokens", "pooled")
        })  # fmt: skip
        with forward:
            output = run(replace(input, text=text))
        output, *tensors = cut(output)
        parts.append(tuple(tensors))
        return output

    module.denoiser.forward = counted
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused kernel is one that torch does not count
        module.training_step(clips, 0)["loss"].backward()
        ((made, leaves),) = parts
        assert all(leaf.grad is not None for leaf in leaves)
        with backward:
            torch.autograd.backward(made, [leaf.grad for leaf in leaves])
    return forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=2p1d", "model.backbone.depth=2"),
        ("model=full3d", "model.backbone.depth=2", "conditioning=masked_video"),
        ("model=skiparse", "model.backbone.depth=4"),
        ("model=mmdim", "model.backbone.depth=2"),
        ("model=mmdim", "model.backbone.depth=2", "objective=pyramid_flow"),
        ("model=stiv", "model.backbone.depth=2"),
        pytest.param((*HARIVO, "model.backbone.mapping_layers=0"), marks=pytest.mark.slow),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_step_counts_what_it_computes(overrides, monkeypatch):
    monkeypatch.setitem(ssd.CHUNKS, "cpu", ssd.CHUNKS["cuda"])
    module = composed(*overrides)
    clips = batch(module, ("a red circle moves to the right", "a box"))
    assert real_flops(module, clips) == 2 * module.step_cost(clips).training_flops


def test_a_frozen_body_and_a_second_branch():
    """Three times the forward pass would be half too much: of a frozen convolution one product of three is missing."""
    module = composed(*HARIVO, "losses=harivo")
    clips = batch(module, ("a red circle moves to the right",))
    both = module.plan.cost(module.costs.reads(InputShape(module.latent), 8, 0))
    assert real_flops(module, clips) == both.training_flops == module.step_cost(clips).training_flops
    alone = module.plan.cost(replace(module.costs.reads(InputShape(module.latent), 8, 0), requested=frozenset()))
    assert 1.0 < alone.backward_flops / alone.forward_flops < 1.5
    assert both.forward_flops > 1.5 * alone.forward_flops and both.backward_flops > 1.3 * alone.backward_flops


def test_products_of_the_state_space_dual_by_counting_them():
    """The formulas of the operators against the products of a span, which computes scores and states once more."""
    Q, P, S, matrices = 8, 4, 6, 2 * 3  # two heads, three chunks
    x, dy, B, C = (torch.randn(matrices, Q, size) for size in (P, P, S, S))
    span = Span(x, torch.rand(matrices, Q), -torch.rand(matrices, 1), B, C, None, (1, 2, 3))
    state = torch.zeros(1, 2, P, S)
    in_place = {torch.ops.aten.baddbmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}
    forward, backward = (FlopCounterMode(display=False, custom_mapping=in_place) for _ in range(2))
    with forward:
        span_forward(span, state, Scratch(x))
    with backward:
        span_backward(span, state, dy, state, Scratch(x))
    again = 2 * matrices * (Q * Q * S + Q * P * S)
    operands = [1, 3 * Q, 2, P], [1, 3 * Q, 2], [2], [1, 3 * Q, 2, S], [1, 3 * Q, 2, S], None, [1, 2, P, S]
    assert forward.get_total_flops() == FLOP_FORMULAS[torch.ops.vidlab.ssd](*operands, Q)
    counted = FLOP_FORMULAS[torch.ops.vidlab.ssd_backward](operands[0], operands[-1], *operands[:-1], [1], Q)
    assert backward.get_total_flops() - again == counted == 2 * forward.get_total_flops()
