"""Structure control: what a frozen parent answers with a controller beside it (Open-Sora Plan, equations 11 to 16)."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from vidlab.backbones.base import BlockSpec, VideoDenoiser
from vidlab.backbones.structure import StructureControlled
from vidlab.backbones.structure.controller import StructureController
from vidlab.backbones.structure.downsampler import SignalDownsampler, prime_factors
from vidlab.clip import TOKEN_DROP, DenoiserInput, LatentShape, Stride, TextEmbedding
from vidlab.cost.flops import DenoiserCounter, StepInput
from vidlab.diffusion.objective import InputShape
from vidlab.errors import UserError
from vidlab.lab.compose import build_module, make_backbone
from vidlab.lab.init import from_run
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.structure import StructureSignal, concatenate_signals
from vidlab.training.warm_start import Source, inherit

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml") if not path.stem.startswith("harivo"))
SMALL = [
    "data.frames=8", "data.height=16", "data.width=16", "model.backbone.width=48", "model.backbone.heads=2",
    "model.backbone.depth=2", "text_encoder.width=16", "text_encoder.heads=2",
]  # fmt: skip


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["conditioning=structure", *overrides])


@cache
def built(name: str, *overrides: str):
    """A module whose parent answers something."""
    torch.manual_seed(0)
    module = build_module(composed(f"model={name}", *SMALL, *overrides))
    module.configure_model()
    for parameter in module.denoiser.parent.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.05)
    return module.eval()


def example(module, batch=2) -> DenoiserInput:
    latent, width = module.latent, module.text_encoder.width
    draw = torch.Generator().manual_seed(1)
    t = torch.linspace(0.3, 0.8, batch)
    text = TextEmbedding(
        torch.randn(batch, 3, width, generator=draw), torch.ones(batch, 3, dtype=torch.bool),
        torch.randn(batch, width, generator=draw),
    )  # fmt: skip
    latents = torch.randn(batch, latent.channels, latent.frames, latent.height, latent.width, generator=draw)
    maps = torch.rand(batch, *module.denoiser.structure_shape(latent), generator=draw)
    micro = {
        name: torch.rand(batch, *shape, generator=draw) for name, shape in module.denoiser.micro_shapes(latent).items()
    }
    return DenoiserInput(latents, t, 1000 * t, text, micro=micro, structure=StructureSignal(maps))


def opened(controlled: StructureControlled) -> None:
    torch.manual_seed(2)
    for projection in controlled.controller.projections:
        nn.init.normal_(projection.weight, std=0.05)


def closed(controlled: StructureControlled) -> None:
    for projection in controlled.controller.projections:
        nn.init.zeros_(projection.weight)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_new_controller_leaves_every_transformer_as_it_is(name):
    module = built(name)
    controlled, input = module.denoiser, example(module)
    alone = controlled.parent(replace(input, structure=None)).prediction
    assert alone.std() > 1e-3
    assert torch.equal(controlled(input).prediction, alone)
    assert len(controlled.controller.projections) == controlled.spec.blocks.count
    opened(controlled)
    try:
        assert not torch.equal(controlled(input).prediction, alone)
        for off in (replace(input.structure, strength=0.0), replace(input.structure, interval=(0.9, 1.0)), None):
            assert torch.equal(controlled(replace(input, structure=off)).prediction, alone)
        noisy = replace(input.structure, interval=(0.5, 1.0))  # of t = 0.3 and 0.8
        one = controlled(replace(input, structure=noisy)).prediction
        assert torch.equal(one[0], alone[0]) and not torch.equal(one[1], alone[1])
    finally:
        closed(controlled)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_what_is_added_stands_behind_each_block(name):
    """Eq. 16 against hooks that add the same behind the blocks."""
    module = built(name)
    parent, input = module.denoiser.parent, replace(example(module), structure=None)
    tokens, width = parent.token_count(module.latent), parent.spec.blocks.width
    parts = torch.randn(parent.spec.blocks.count, 1, tokens, width, generator=torch.Generator().manual_seed(3))
    found = parent(replace(input, additions=lambda number: parts[number].expand(2, -1, -1))).prediction
    lists = [part for part in parent.children() if isinstance(part, nn.ModuleList) and len(part)]
    blocks = [b for part in sorted(lists, key=lambda p: "Dual" not in type(p[0]).__name__) for b in part]

    def add(part):
        def hook(block, inputs, output):
            if isinstance(output, tuple):  # a dual stream: text, video
                return (output[0], output[1] + part)
            return torch.cat([output[:, :-tokens], output[:, -tokens:] + part], dim=1)

        return hook

    handles = [block.register_forward_hook(add(part)) for block, part in zip(blocks, parts, strict=True)]
    expected = parent(input).prediction
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, parent(input).prediction)


def test_dropped_tokens_get_nothing_and_kept_ones_their_own():
    """Under STIV's masking an addition that is alike everywhere is so for the kept tokens too."""
    module = built("stiv", "model.backbone.mask_ratio=0.5", "model.backbone.unmask_blocks=1")
    parent, input = module.denoiser.parent.train(), replace(example(module), structure=None)
    tokens, width = parent.token_count(module.latent), parent.spec.blocks.width
    assert TOKEN_DROP in input.micro
    places = torch.arange(tokens, dtype=torch.float32)[None, :, None].expand(2, -1, width)

    def first(where):
        return lambda number: where if number == 0 else torch.zeros_like(where)

    alike = parent(replace(input, additions=first(torch.ones(2, tokens, width)))).prediction
    shifted = parent(replace(input, additions=first(places))).prediction
    scores = input.micro[TOKEN_DROP]
    count = scores.shape[1]
    dropped = scores.argsort(dim=1)[:, count // 2 :]
    own = places.clone().unflatten(1, (-1, count))
    for clip, numbers in enumerate(dropped):
        own[clip, :, numbers] = -100.0  # what stands at dropped places is not read
    again = parent(replace(input, additions=first(own.flatten(1, 2)))).prediction
    module.denoiser.eval()
    assert torch.equal(shifted, again) and not torch.allclose(alike, shifted)


def test_a_model_without_transformer_blocks_is_refused():
    class Convolutions(VideoDenoiser):
        forward = token_count = None

    with pytest.raises(UserError, match="a Convolutions declares none"):
        StructureControlled(LatentShape(3, 4, 8, 8), 16, lambda **_: Convolutions(), 2, Stride(1, 1, 1))


@torch.no_grad()
def test_the_projections_read_one_encoding_of_the_signal():
    torch.manual_seed(0)
    stride, blocks = Stride(2, 4, 4), BlockSpec(3, 24, 2)
    controller = StructureController(2, 5, stride, (1, 2, 2), blocks, 2, 4.0, LayerPlan([Full3D()], 0, 0), 100.0)
    assert len(controller.blocks) == 2 and len(controller.projections) == 3  # K and M
    maps, latents = torch.rand(2, 2, 4, 16, 16), torch.empty(2, 5, 2, 4, 4)
    gain = torch.tensor([1.0, -0.5])[:, None, None]
    assert not any(controller(maps, latents, gain)(j).any() for j in range(3))
    nn.init.eye_(controller.projections[1].weight)
    encoded = controller.encoded(maps, latents)
    assert encoded.shape == (2, 2 * 2 * 2, 24)
    assert torch.equal(controller(maps, latents, gain)(1), gain * encoded)
    read = []
    for block in controller.blocks:
        block.register_forward_hook(lambda _, inputs, output: read.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        controller.encoded(maps, latents)
    assert read == [(torch.bfloat16, torch.bfloat16)] * 2, "the type that is computed in, as a denoiser's"


@pytest.mark.parametrize(
    ("stride", "pixels", "latents"),
    [
        (Stride(4, 8, 8), (8, 32, 48), (2, 4, 6)),
        (Stride(4, 8, 8, first_frame_alone=True), (9, 32, 32), (3, 4, 4)),
        (Stride(4, 8, 8, first_frame_alone=True), (1, 32, 32), (1, 4, 4)),
        (Stride(1, 1, 1), (3, 8, 8), (3, 8, 8)),
        (Stride(3, 5, 5), (6, 20, 10), (2, 4, 2)),
        (Stride(4, 8, 8), (8, 30, 31), (2, 4, 4)),  # an autoencoder that pads
    ],
)
def test_signals_come_to_the_size_of_the_latents(stride, pixels, latents):
    down = SignalDownsampler(2, 7, stride)
    assert down(torch.rand(1, 2, *pixels), latents).shape == (1, 7, *latents)
    assert [prime_factors(n) for n in (1, 2, 8, 12)] == [[], [2], [2, 2, 2], [2, 2, 3]]


def test_a_lone_first_frame_stands_for_a_whole_latent_frame():
    """1 + 4 n frames, the first repeated: frames of the next latent position are those that it covers."""
    down = SignalDownsampler(1, 1, Stride(4, 1, 1, first_frame_alone=True))
    for layer in (*down.stages, down.out):
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)
    maps = torch.zeros(1, 1, 9, 1, 1)
    maps[:, :, 0] = 1
    causal = down(maps, (3, 1, 1))
    down.stride = Stride(4, 1, 1)
    assert torch.equal(causal, down(torch.cat([maps[:, :, :1]] * 3 + [maps], dim=2), (3, 1, 1)))


def test_gradients_are_finite_under_autocast():
    torch.manual_seed(0)
    down = SignalDownsampler(2, 192, Stride(4, 4, 4))
    for _ in range(6):  # in bfloat16 some of these are not
        with torch.autocast("cpu", torch.bfloat16):
            down((torch.rand(16, 2, 8, 32, 32) > 0.9).float(), (2, 8, 8)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in down.parameters())


def test_signals_of_several_passes_are_stacked_and_cut():
    maps = torch.rand(2, 2, 4, 8, 8)
    one = StructureSignal(maps, 0.5, (0.2, 1.0))
    joint = concatenate_signals([one, one])
    assert torch.equal(joint.maps, torch.cat([maps, maps])) and (joint.strength, joint.interval) == (0.5, (0.2, 1.0))
    assert torch.equal(joint.rows(slice(1, 3)).maps, joint.maps[1:3])
    assert concatenate_signals([None, None]) is None
    assert torch.equal(one.gain(torch.tensor([0.1, 0.2, 1.0])).flatten(), torch.tensor([0.0, 0.5, 0.5]))
    assert torch.equal(one.gain(torch.tensor([[0.1, 0.3], [0.0, 0.1]])).flatten(), torch.tensor([0.5, 0.0]))
    for other in (None, replace(one, strength=1.0)):
        with pytest.raises(ValueError, match="one strength and interval"):
            concatenate_signals([one, other])


def test_a_history_that_the_parent_could_keep_is_read_anew():
    module = built("mmdim", "model.backbone.history_timestep=clean", "model.backbone.text_ends=left")
    assert module.denoiser.parent.spec.remembers_history and not module.denoiser.spec.remembers_history
    with pytest.raises(ValueError, match="anew at each noise level"):
        module.denoiser.remember(example(module))


def test_only_the_controller_is_trained_and_the_parent_is_inherited():
    module = built("full3d")
    assert module.needs_parent and module.denoiser.spec.frozen == ("parent.*",)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("backbone.controller.") for name in trained)
    assert any(name.startswith("text_encoder.") for name in module.state_dict().keys() - module.frozen_keys())
    cfg = compose_init()
    weights = {
        name.replace("backbone.parent.", "backbone."): torch.full_like(value, 0.25)
        for name, value in module.named_parameters() if ".controller." not in name
    }  # fmt: skip
    new = build_module(composed("model=full3d", *SMALL))
    new.configure_model()
    report = inherit(new, [Source("run", weights)], cfg.fresh, cfg.copies, names=new.inherited())
    assert not report.unused
    assert all((p == 0.25).all() for n, p in new.named_parameters() if ".controller." not in n)


def compose_init():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("train", ["init=from_run", "init.run=last"]).init
    return from_run(node.run, fresh=list(node.fresh), copies=dict(node.copies))


def test_at_published_size_two_blocks_cost_less_than_a_seventh():
    """Open-Sora Plan v1.3 on 93 frames of 352 x 640, its largest: K = 2 against the parent alone."""
    cfg = composed("model=paper/open_sora_plan", "structure=canny")
    stride = Stride(4, 8, 8, first_frame_alone=True)
    latent, text = LatentShape(8, 24, 44, 80), 4096
    read = StepInput(InputShape(latent), 512)
    with torch.device("meta"):
        parent = make_backbone(cfg.model, stride)
        alone = DenoiserCounter(parent(latent=latent, text_width=text), text)
        joint = DenoiserCounter(
            StructureControlled(latent, text, parent, channels=2, stride=stride, depth=2, attention="sdpa"), text
        )
    assert sum(p.numel() for p in alone.backbone.parameters()) == 2_771_981_600
    found = {}
    for name, counter in (("alone", alone), ("joint", joint)):
        with torch.no_grad():
            found[name] = counter.cost(read)
    more = found["joint"].parameters / found["alone"].parameters - 1
    flops = found["joint"].forward_flops / found["alone"].forward_flops - 1
    assert 0 < more <= 0.15 and 0 < flops <= 0.15
