"""One table: model x objective x conditioning x sampler x precision x shapes, trained and sampled or refused.

Every pair of two choices is in a row of ``ROWS``, which the names of the tests spell out; all of model x objective x
conditioning, each with all samplers, are marked ``slow``, and so are models in two processes (``cli/test_ddp.py``).
What cannot work is refused when the parts are put together, with its reason; ``REFUSED`` lists all of that. A new file
in conf/ takes part without touching this one, so no combination is in neither.
"""

import itertools
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.clip import ClipBatch
from vidlab.errors import UserError
from vidlab.lab.compose import build_module
from vidlab.randomness import KeyedRNG
from vidlab.training.precision_plugins import precision_plugin
from vidlab.training.video_diffusion import VideoDiffusion

CONF = Path(__file__).resolve().parents[1] / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


MODELS, OBJECTIVES, CONDITIONINGS = choices("model"), choices("objective"), choices("conditioning")
SAMPLERS, GUIDANCES = choices("sampler"), choices("guidance")
SMALL = [
    "data.frames=8", "data.height=8", "data.width=8", "model.backbone.width=48", "model.backbone.heads=2",
    "model.backbone.depth=2", "text_encoder.width=16", "text_encoder.heads=2", "sampler.steps=2",
]  # fmt: skip

# (group, choice), (group, choice): the reason it is refused with
REFUSED = {
    frozenset({"guidance=separate_image_text", "conditioning=none"}): "guidance=SeparateImageText needs a model",
    frozenset({"guidance=prompt", "conditioning=none"}): "guidance=PromptGuidance needs a model",
}


@cache
def composed(*overrides: str) -> VideoDiffusion:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build_module(compose("train", [*overrides, *SMALL]))


def batch(size: tuple[int, int, int]) -> ClipBatch:
    pixels = KeyedRNG(0, ("a", "b"), (0, 0)).uniform("pixels", (3, *size)) * 2 - 1
    return ClipBatch(pixels, ("a red square", "a dog"), ("a", "b"), (0, 0), 0, (8.0, 8.0))


def refusal(*overrides: str) -> str | None:
    return next((reason for pair, reason in REFUSED.items() if pair <= set(overrides)), None)


PRECISIONS = ["32-true", "64-true", "bf16-mixed", "bf16-true"]  # 16-mixed needs a GPU
SHAPES = {"one": [(8, 8, 8)], "buckets": [(8, 8, 8), (8, 8, 16)], "joint_images": [(8, 8, 8), (1, 16, 8)]}
PER_FRAME = ["autoencoder=haar_frames", "model.token=[1,4,4]"]  # images are clips of one frame


def rows_of_all_pairs(*factors: list[str]) -> list[tuple[str, ...]]:
    """Few rows in which every two choices of different factors meet: each the best of 60 drawn."""
    draw, rows = random.Random(0), []
    missing = {
        ((a, x), (b, y)) for a, b in itertools.combinations(range(len(factors)), 2) for x in factors[a]
        for y in factors[b]
    }  # fmt: skip
    while missing:
        (a, x), (b, y) = min(missing)
        drawn = [[draw.choice(factor) for factor in factors] for _ in range(60)]
        for row in drawn:
            row[a], row[b] = x, y
        best = max(drawn, key=lambda row: len(missing & set(pairs(row))))
        rows.append(tuple(best))
        missing -= set(pairs(best))
    return rows


def pairs(row) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    return list(itertools.combinations(enumerate(row), 2))


ROWS = rows_of_all_pairs(MODELS, OBJECTIVES, CONDITIONINGS, SAMPLERS, PRECISIONS, list(SHAPES))


def trained(monkeypatch, overrides: tuple[str, ...], precision: str, shapes: str) -> VideoDiffusion:
    """A module after a backward pass of every shape; each reaches every parameter, as DDP demands."""
    assert refusal(*overrides) is None
    torch.manual_seed(0)
    module = composed.__wrapped__(*overrides, *(PER_FRAME if shapes == "joint_images" else []))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "count", lambda _: None)
    module.configure_model()
    plugin = precision_plugin(precision, "cpu")
    plugin.convert_module(module)
    for size in SHAPES[shapes]:
        module.zero_grad()
        with plugin.forward_context():
            loss = module.train().training_step(batch(size), 0)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
        assert any(p.grad.any() for p in module.denoiser.parameters())
    return module.eval()


def sampled(module: VideoDiffusion, sampler: str, precision: str = "32-true") -> None:
    module.sampler = composed("model=full3d", f"sampler={sampler}").sampler
    with precision_plugin(precision, "cpu").forward_context():
        video = module.pipeline.clips(["a red square"], KeyedRNG(0, ("x",), (0,)))
    assert video.shape == (1, 3, 8, 8, 8) and video.isfinite().all()


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_every_pair_trains_and_samples(row, monkeypatch):
    model, objective, conditioning, sampler, precision, shapes = row
    overrides = (f"model={model}", f"objective={objective}", f"conditioning={conditioning}")
    sampled(trained(monkeypatch, overrides, precision, shapes), sampler, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "objective", "conditioning"), itertools.product(MODELS, OBJECTIVES, CONDITIONINGS))
def test_every_combination_trains_and_samples(model, objective, conditioning, monkeypatch):
    overrides = (f"model={model}", f"objective={objective}", f"conditioning={conditioning}")
    module = trained(monkeypatch, overrides, "32-true", "one")
    for name in SAMPLERS:
        sampled(module, name)


@pytest.mark.parametrize(("conditioning", "guidance"), itertools.product(CONDITIONINGS, GUIDANCES))
def test_every_guidance_serves_every_conditioning(conditioning, guidance):
    overrides = (f"conditioning={conditioning}", f"guidance={guidance}")
    reason = refusal(*overrides)
    if reason is not None:
        with pytest.raises(UserError, match=reason):
            composed("model=full3d", *overrides)
        return
    module = composed("model=full3d", *overrides)
    module.configure_model()
    module.eval()
    known = torch.zeros(1, 8, dtype=torch.bool)
    known[:, 0] = known[:, -1] = module.conditioning.takes_frames
    video = module.pipeline.clips(["a dog"], KeyedRNG(0, ("x",), (0,)), torch.zeros(1, 3, 8, 8, 8), known)
    assert video.shape == (1, 3, 8, 8, 8) and video.isfinite().all()
    if conditioning.startswith("frame_"):
        torch.testing.assert_close(video[:, :, 0], torch.zeros(1, 3, 8, 8), atol=1e-5, rtol=0)


def test_the_table_covers_what_there_is():
    assert {"2p1d", "full3d", "skiparse"} <= set(MODELS) and {"flow_matching", "v_prediction", "epsilon"} <= set(
        OBJECTIVES
    )
    assert {"none", "frame_replacement", "masked_video"} <= set(CONDITIONINGS)
    assert {"euler", "heun", "ddim", "ancestral", "dpmpp_2m"} <= set(SAMPLERS)
    listed = {choice for pair in REFUSED for choice in pair}
    assert all(choice.partition("=")[2] in choices(choice.partition("=")[0]) for choice in listed)
