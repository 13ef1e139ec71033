import pytest
import torch

from vidlab.errors import UserError
from vidlab.sampling.guidance import ClassifierFreeGuidance, Guidance, NoGuidance

TEXT, NULL = torch.full((1, 1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 1, 2), 1.0)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1), (0.5, 2), (1.0, 3), (2.0, 5), (4.0, 9), (7.5, 16)])
def test_guidance_by_hand(scale, expected):
    # 1 + scale (3 - 1)
    combined = ClassifierFreeGuidance(scale).combine({"text": TEXT, "null": NULL}, 0.5)
    assert combined.unique().tolist() == [expected]


def test_w_of_the_paper_is_scale_minus_one():
    # Ho & Salimans 2022, eq. 6: (1 + w) text - w null
    w, (text, null) = 2.5, torch.randn(2, 1, 3, 2, 4, 4)
    combined = ClassifierFreeGuidance(1 + w).combine({"text": text, "null": null}, 0.5)
    torch.testing.assert_close(combined, (1 + w) * text - w * null)


def test_what_is_evaluated():
    assert ClassifierFreeGuidance(4).needs(0.5) == ("text", "null")
    assert ClassifierFreeGuidance(0).needs(0.5) == ("text", "null")
    assert ClassifierFreeGuidance(1).needs(0.5) == NoGuidance().needs(0.5) == ("text",)
    assert ClassifierFreeGuidance(1).combine({"text": TEXT}, 0.5) is TEXT
    assert NoGuidance().combine({"text": TEXT}, 0.5) is TEXT
    assert isinstance(NoGuidance(), Guidance) and isinstance(ClassifierFreeGuidance(), Guidance)


def test_a_negative_scale():
    with pytest.raises(UserError, match=r"guidance.scale=-1"):
        ClassifierFreeGuidance(-1)
