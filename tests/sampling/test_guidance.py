from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.sampling.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    Interval,
    NoGuidance,
    PromptGuidance,
    Renormalize,
    Rescale,
    SeparateImageText,
)
from vidlab.sampling.guidance_scales import CosineScale, LinearScale, ScaleSchedule

CONF = Path(__file__).resolve().parents[2] / "conf"


def latents(*values: float) -> torch.Tensor:
    """One clip per pair of values."""
    return torch.tensor(values).view(-1, 1, 1, 1, 2)


FULL, IMAGE, NULL = latents(3.0, 3.0), latents(2.0, 2.0), latents(1.0, 1.0)
GIVEN = {"full": FULL, "image": IMAGE, "null": NULL}
CFG = ClassifierFreeGuidance(3.0)
ALL = [
    NoGuidance(), CFG, ClassifierFreeGuidance(LinearScale(1.0, 5.0)), SeparateImageText(), PromptGuidance(),
    Interval(CFG, 0.2, 0.8),
    Renormalize(CFG), Rescale(CFG), Renormalize(SeparateImageText()), Rescale(Interval(Renormalize(CFG), 0.3, 0.6)),
]  # fmt: skip


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1), (0.5, 2), (1.0, 3), (2.0, 5), (4.0, 9), (7.5, 16)])
def test_guidance_by_hand(scale, expected):
    # 1 + scale (3 - 1)
    combined = ClassifierFreeGuidance(scale).combine({"full": FULL, "null": NULL}, 0.5)
    assert combined.unique().tolist() == [expected]


def test_w_of_the_paper_is_scale_minus_one():
    # Ho & Salimans 2022, eq. 6: (1 + w) full - w null
    w, (full, null) = 2.5, torch.randn(2, 1, 3, 2, 4, 4)
    combined = ClassifierFreeGuidance(1 + w).combine({"full": full, "null": null}, 0.5)
    torch.testing.assert_close(combined, (1 + w) * full - w * null)


def test_the_prompt_alone_guides():
    # 2 + scale (3 - 2): separate guidance with an image scale of 1, at two evaluations
    for scale, expected in ((0.0, 2), (1.0, 3), (7.5, 9.5)):
        assert PromptGuidance(scale).combine(GIVEN, 0.5).unique().tolist() == [expected]
        assert SeparateImageText(1.0, scale).combine(GIVEN, 0.5).unique().tolist() == [expected]
    assert PromptGuidance(7.5).needs(0.5) == ("full", "image") and PromptGuidance(1.0).needs(0.5) == ("full",)
    assert PromptGuidance(LinearScale(2.0, 0.0)).combine(GIVEN, 0.25).unique().tolist() == [2.5]


def test_what_is_evaluated():
    assert ClassifierFreeGuidance(4).needs(0.5) == ("full", "null")
    assert ClassifierFreeGuidance(0).needs(0.5) == ("full", "null")
    assert ClassifierFreeGuidance(1).needs(0.5) == NoGuidance().needs(0.5) == ("full",)
    assert ClassifierFreeGuidance(1).combine({"full": FULL}, 0.5) is FULL
    assert NoGuidance().combine({"full": FULL}, 0.5) is FULL


def every_choice() -> dict[str, Guidance]:
    files = sorted((CONF / "guidance").glob("[!_]*.yaml"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = {path.stem: compose("train", [f"guidance={path.stem}"]).guidance for path in files}
    return {name: instantiate(node, "guidance") for name, node in made.items()}


def test_the_passes_of_every_choice_are_those_that_it_asks_for_at_some_level():
    levels = torch.linspace(0, 1, 1001).tolist()
    for name, guidance in (every_choice() | {repr(guidance): guidance for guidance in ALL}).items():
        asked = {condition for t in levels for condition in guidance.needs(t)}
        assert set(guidance.passes) == asked and len(guidance.passes) == len(asked), name


@pytest.mark.parametrize("guidance", ALL, ids=repr)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_every_guidance_combines_what_it_asks_for(guidance, t):
    names = guidance.needs(t)
    assert isinstance(guidance, Guidance) and "full" in names and len(set(names)) == len(names)
    assert set(names) <= set(guidance.passes)
    given = {name: torch.randn(2, 3, 2, 4, 4) for name in names}
    combined = guidance.combine(given, t)
    assert combined.shape == (2, 3, 2, 4, 4) and combined.isfinite().all()
    # clips do not see each other, and equal predictions are left alone
    alone = guidance.combine({name: value[:1] for name, value in given.items()}, t)
    torch.testing.assert_close(alone, combined[:1])
    torch.testing.assert_close(guidance.combine(dict.fromkeys(names, given["full"]), t), given["full"])


def test_image_and_text_apart_by_hand():
    # 1 + 1.5 (2 - 1) + 7.5 (3 - 2)
    assert SeparateImageText().combine(GIVEN, 0.5).unique().tolist() == [10]
    assert SeparateImageText().needs(0.5) == ("full", "image", "null")
    assert SeparateImageText(1.0, 1.0).combine(GIVEN, 0.5).unique().tolist() == [3]
    assert SeparateImageText(LinearScale(2.0, 0.0), 1.0).combine(GIVEN, 0.25).unique().tolist() == [2.5]


def test_equal_scales_are_joint_guidance():
    given = {name: torch.randn(2, 3, 2, 4, 4) for name in GIVEN}
    joint = ClassifierFreeGuidance(4.0).combine(given, 0.5)
    torch.testing.assert_close(SeparateImageText(4.0, 4.0).combine(given, 0.5), joint, rtol=1e-5, atol=1e-5)


def test_renormalization_keeps_the_norm_of_the_conditional_prediction():
    # guided: (3, 0) + 2 ((3, 4) - (3, 0)) = (3, 8); |full| = 5, |guided| = sqrt(73); each clip by itself
    given = {"full": latents(3.0, 4.0, 30.0, 40.0), "null": latents(3.0, 0.0, 30.0, 0.0)}
    combined = Renormalize(ClassifierFreeGuidance(2.0)).combine(given, 0.5)
    expected = latents(3.0, 8.0, 30.0, 80.0) * 5 / 73**0.5
    torch.testing.assert_close(combined, expected)


def test_rescaling_by_hand():
    # guided: (1, 1) + 3 ((2, 4) - (1, 1)) = (4, 10), of deviation 3 where that of full is 1
    given = {"full": latents(2.0, 4.0), "null": latents(1.0, 1.0)}
    for factor, expected in (
        (0.0, (4, 10)),
        (1.0, (4 / 3, 10 / 3)),
        (0.7, (4 * (0.7 / 3 + 0.3), 10 * (0.7 / 3 + 0.3))),
    ):
        assert Rescale(CFG, factor).combine(given, 0.5).flatten().tolist() == pytest.approx(expected)


def test_nothing_to_measure_is_no_division_by_zero():
    zeros = {"full": torch.zeros(1, 1, 1, 1, 2), "null": torch.zeros(1, 1, 1, 1, 2)}
    for guidance in (Renormalize(CFG), Rescale(CFG)):
        assert guidance.combine(zeros, 0.5).tolist() == zeros["full"].tolist()


def test_wrappers_ask_for_the_conditional_prediction():
    class OnlyNull:
        def needs(self, t: float) -> tuple[str, ...]:
            return ("null",)

        @property
        def passes(self) -> tuple[str, ...]:
            return ("null",)

        def combine(self, predictions, t: float) -> torch.Tensor:
            return predictions["null"]

    assert Renormalize(OnlyNull()).needs(0.5) == Rescale(OnlyNull()).needs(0.5) == ("null", "full")


def test_guidance_within_an_interval():
    guidance = Interval(CFG, 0.25, 0.75)
    for t in (0.25, 0.5, 0.75):
        assert guidance.needs(t) == ("full", "null") and guidance.combine(GIVEN, t).unique().tolist() == [7]
    for t in (0.0, 0.2499, 0.7501, 1.0):
        assert guidance.needs(t) == ("full",) and guidance.combine({"full": FULL}, t) is FULL


def test_scales_by_noise_level():
    linear, cosine = LinearScale(1.0, 5.0), CosineScale(1.0, 5.0)
    assert [linear.at(t) for t in (1, 0.75, 0.5, 0)] == [1, 2, 3, 5]
    assert [cosine.at(t) for t in (1, 0.75, 0.5, 0)] == pytest.approx([1, 5 - 2 * (1 + 0.5**0.5), 3, 5])
    guidance = ClassifierFreeGuidance(linear)
    assert guidance.needs(1.0) == ("full",) and guidance.needs(0.5) == ("full", "null")
    assert guidance.combine(GIVEN, 0.5).unique().tolist() == [7]  # 1 + 3 (3 - 1)
    assert isinstance(linear, ScaleSchedule) and isinstance(cosine, ScaleSchedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFreeGuidance(-1), r"guidance\.scale=-1"),
        (lambda: PromptGuidance(-1.0), r"guidance\.scale=-1"),
        (lambda: SeparateImageText(-1.0), r"guidance\.image_scale=-1"),
        (lambda: SeparateImageText(1.0, -2.0), r"guidance\.text_scale=-2"),
        (lambda: LinearScale(-1.0, 2.0), r"guidance\.scale\.start=-1"),
        (lambda: CosineScale(1.0, -2.0), r"guidance\.scale\.end=-2"),
        (lambda: Interval(CFG, 0.8, 0.2), r"guidance\.low=0.8 and guidance\.high=0.2"),
        (lambda: Interval(CFG, 0.0, 1.5), r"guidance\.high=1.5"),
        (lambda: Rescale(CFG, 1.5), r"guidance\.factor=1.5"),
    ],
)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
