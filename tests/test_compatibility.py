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

# what makes one frame after another, and what is made for that
PYRAMIDS = [f"objective={name}" for name in OBJECTIVES if name.startswith("pyramid_flow")]
GAUSSIANS = [f"objective={name}" for name in OBJECTIVES if not name.startswith("pyramid_flow")]
BY_FRAME = ["guidance=first_and_later", "guidance=self_quality"]
NO_FRAMES = ["conditioning=none", "conditioning=class"]
READ_HISTORY = ["model=full3d", "model=skiparse", "model=mmdim"]  # at this depth layers of skiparse are all full ones


def refused_pairs(lefts: list[str], rights: list[str], reason: str) -> dict[frozenset[str], str]:
    return {frozenset({left, right}): reason for left in lefts for right in rights}


# (group, choice), (group, choice): the reason it is refused with
REFUSED = {
    **refused_pairs(["guidance=separate_image_text"], NO_FRAMES, "guidance=SeparateImageText needs a model"),
    **refused_pairs(["guidance=prompt"], NO_FRAMES, "guidance=PromptGuidance needs a model"),
    **refused_pairs(PYRAMIDS, [f"sampler={name}" for name in SAMPLERS if name != "pyramid"], "undoes the gaussian"),
    **refused_pairs(GAUSSIANS, ["sampler=pyramid"], "undoes the pyramid process"),
    **refused_pairs(GAUSSIANS, BY_FRAME, "combines passes under"),
    **refused_pairs(PYRAMIDS, ["guidance=mitigating_gradient"], "compares all frames of a video"),
    **refused_pairs(
        PYRAMIDS, [f"model={name}" for name in MODELS if f"model={name}" not in READ_HISTORY], "reads no history"
    ),
    **refused_pairs(
        PYRAMIDS, ["conditioning=masked_video", "conditioning=masked_video_curriculum"], "adds channels of a whole clip"
    ),
    frozenset({"guidance=separate_image_text", "conditioning=structure"}): "guidance=SeparateImageText needs a model",
    frozenset({"guidance=prompt", "conditioning=structure"}): "guidance=PromptGuidance needs a model",
    **refused_pairs(PYRAMIDS, ["conditioning=structure"], "adds signals of a whole"),
    **refused_pairs(["model=harivo", "model=harivo_image"], ["conditioning=structure"], "a HARIVO declares none"),
}  # fmt: skip


@cache
def composed(*overrides: str) -> VideoDiffusion:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build_module(compose("train", [*overrides, *small(overrides)]))


def small(overrides: tuple[str, ...]) -> list[str]:
    """The smallest size; a table of classes has no heads, and needs the captions of ``batch``."""
    if "conditioning=class" not in overrides:
        return SMALL
    return [word for word in SMALL if word != "text_encoder.heads=2"] + ["text_encoder.classes=[a red square,a dog]"]


def batch(size: tuple[int, int, int]) -> ClipBatch:
    pixels = KeyedRNG(0, ("a", "b"), (0, 0)).uniform("pixels", (3, *size)) * 2 - 1
    return ClipBatch(pixels, ("a red square", "a dog"), ("a", "b"), (0, 0), 0, (8.0, 8.0))


@cache
def refusal(*overrides: str) -> str | None:
    chosen = frozenset(overrides)
    reasons = [reason for pair, reason in REFUSED.items() if pair <= chosen]
    return "|".join(dict.fromkeys(reasons)) or None  # whichever is found first is said


PRECISIONS = ["32-true", "64-true", "bf16-mixed", "bf16-true"]  # 16-mixed needs a GPU
SHAPES = {"one": [(8, 8, 8)], "buckets": [(8, 8, 8), (8, 8, 16)], "joint_images": [(8, 8, 8), (1, 16, 8)]}
PER_FRAME = ["autoencoder=haar_frames", "model.token=[1,4,4]"]  # images are clips of one frame


GROUPS = ("model", "objective", "conditioning", "sampler")


def named(row) -> tuple[str, ...]:
    """The settings of a row, or of its numbered places."""
    numbered = enumerate(row) if isinstance(row[0], str) else row
    return tuple(f"{GROUPS[place]}={choice}" for place, choice in numbered if place < len(GROUPS))


def rows_of_all_pairs(*factors: list[str]) -> list[tuple[str, ...]]:
    """Few rows in which every two choices of different factors meet, unless no row may have both: the best of 60 drawn.

    What an objective does not go with is refused; with any one of them all other factors go together.
    """
    draw, rows = random.Random(0), []

    def objectives(*places: tuple[int, str]) -> list[str]:
        """Those that go with what stands at some places."""
        return [x for x in factors[1] if refusal(*named([*(p for p in places if p[0] != 1), (1, x)])) is None]

    def row_with(*places: tuple[int, str]) -> list[str]:
        fixed = dict(places)
        row = {1: fixed.get(1) or draw.choice(objectives(*places))}
        for place, factor in enumerate(factors):
            fitting = [x for x in factor if refusal(*named([(1, row[1]), (place, x)])) is None or place == 1]
            row[place] = fixed.get(place) or row.get(place) or draw.choice(fitting)
        return [row[place] for place in range(len(factors))]

    def possible(*places: tuple[int, str]) -> bool:
        found = objectives(*places)
        return dict(places).get(1, found[0] if found else None) in found and refusal(*named(places)) is None

    missing = {
        ((a, x), (b, y)) for a, b in itertools.combinations(range(len(factors)), 2) for x in factors[a]
        for y in factors[b] if possible((a, x), (b, y))
    }  # fmt: skip
    while missing:
        pair = min(missing)
        drawn = [row for row in (row_with(*pair) for _ in range(60)) if refusal(*named(row)) is None]
        best = max(drawn, key=lambda row: len(missing & set(pairs(row))))
        rows.append(tuple(best))
        missing -= set(pairs(best))
    return rows


def pairs(row) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    return list(itertools.combinations(enumerate(row), 2))


ROWS = rows_of_all_pairs(MODELS, OBJECTIVES, CONDITIONINGS, SAMPLERS, PRECISIONS, list(SHAPES))


def drawn(every: bool, *values: object, **options: str) -> object:
    """Values of a test in every run of the tests, or in ``pytest -m slow`` alone."""
    return pytest.param(*values, marks=() if every else pytest.mark.slow, **options)


def trained(monkeypatch, overrides: tuple[str, ...], precision: str, shapes: str) -> VideoDiffusion:
    """A module after a backward pass of every shape; each reaches every parameter, as DDP demands."""
    assert refusal(*overrides) is None
    torch.manual_seed(0)
    per_frame = shapes == "joint_images" or any(one in PYRAMIDS for one in overrides)
    module = composed.__wrapped__(*overrides, *(PER_FRAME if per_frame else []))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "count", lambda _: None)
    module.configure_model()
    if module.needs_parent:  # one that answers, as a trained one does
        for parameter in module.denoiser.pretrained.parameters():
            torch.nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    plugin = precision_plugin(precision, "cpu")
    plugin.convert_module(module)
    for size in SHAPES[shapes]:
        module.zero_grad()
        with plugin.forward_context():
            loss = module.train().training_step(batch(size), 0)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
        assert any(p.grad.any() for p in module.denoiser.parameters() if p.requires_grad)
    return module.eval()


def sampled(module: VideoDiffusion, sampler: str, precision: str = "32-true") -> None:
    objective = PYRAMIDS[:1] + PER_FRAME if sampler == "pyramid" else []
    module.sampler = composed("model=full3d", f"sampler={sampler}", *objective).sampler
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
    reason = refusal(*overrides)
    if reason is not None:
        with pytest.raises(UserError, match=reason):
            composed(*overrides, *PER_FRAME)
        return
    module = trained(monkeypatch, overrides, "32-true", "one")
    for name in SAMPLERS:
        if refusal(*overrides, f"sampler={name}") is None:
            sampled(module, name)


WITH_A_PYRAMID = [sorted(pair) for pair in REFUSED if any(one in pair for one in PYRAMIDS)]


@pytest.mark.parametrize(("left", "right"), [drawn(PYRAMIDS[0] in pair, *pair) for pair in WITH_A_PYRAMID])
def test_what_does_not_go_with_pyramid_flow_is_refused(left, right):
    with pytest.raises(UserError, match=REFUSED[frozenset({left, right})]):
        composed(left, right, *PER_FRAME)


def guided() -> list[object]:
    """Every guidance with every conditioning: all that are refused, and a third of the others, in every run."""
    places = itertools.product(enumerate(CONDITIONINGS), enumerate(GUIDANCES))
    return [
        drawn((i + j) % 3 == 0 or frozenset({f"guidance={guidance}", f"conditioning={one}"}) in REFUSED, one, guidance)
        for (i, one), (j, guidance) in places
    ]  # fmt: skip


@pytest.mark.parametrize(("conditioning", "guidance"), guided())
def test_every_guidance_serves_every_conditioning(conditioning, guidance):
    objective = PYRAMIDS[0] if f"guidance={guidance}" in BY_FRAME else GAUSSIANS[0]
    per_frame = PER_FRAME if objective in PYRAMIDS else []
    overrides = (f"conditioning={conditioning}", f"guidance={guidance}", objective, *per_frame)
    reason = refusal(*overrides)
    if reason is not None:
        with pytest.raises(UserError, match=reason):
            composed("model=full3d", *overrides)
        return
    module = composed("model=full3d", *overrides)
    module.configure_model()
    module.eval()
    known = torch.zeros(1, 8, dtype=torch.bool)
    known[:, 0] = module.conditioning.takes_frames
    known[:, -1] = module.conditioning.takes_frames and objective in GAUSSIANS
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
