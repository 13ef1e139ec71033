"""Class names as prompts."""

import pytest
import torch

from vidlab.errors import UserError
from vidlab.text.classes import ClassEncoder, class_key

NAMES = ["apply eye makeup", "yo yo", "archery"]


@pytest.fixture
def encoder() -> ClassEncoder:
    torch.manual_seed(0)
    return ClassEncoder(NAMES, width=16).eval()


def test_a_name_is_one_class_however_it_is_spelled(encoder):
    assert class_key("ApplyEyeMakeup") == class_key("apply_eye  makeup") == "applyeyemakeup"
    assert [encoder.row(text) for text in ("ApplyEyeMakeup", "Yo-Yo", " archery", "", "  ")] == [1, 2, 3, 0, 0]


def test_a_caption_is_the_normalized_row_of_its_class(encoder):
    found = encoder(["archery", "", "Archery"])
    assert found.tokens.shape == (3, 1, 16) and found.mask.all() and found.lengths == (1, 1, 1)
    row = encoder.table.weight[3]  # the LayerNorm by hand, gain 1 and bias 0
    by_hand = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(found.tokens[0, 0], by_hand)
    assert torch.equal(found.tokens[0], found.tokens[2]) and not torch.equal(found.tokens[0], found.tokens[1])
    torch.testing.assert_close(found.pooled[0], encoder.pool.weight @ by_hand + encoder.pool.bias)


def test_a_class_learns_from_its_own_clips_alone(encoder):
    (encoder(["yo yo", "yo yo"]).tokens * torch.randn(16)).sum().backward()
    assert encoder.table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, r"text_encoder\.classes is not set: .* data=ucf101"),
        (["a b", "AB"], 'text_encoder.classes: "AB" and "a b" are one name'),
        (["walking", "..."], 'text_encoder.classes: "..." has no letter'),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        ClassEncoder(classes)


def test_a_prompt_that_is_no_class_is_refused_with_what_is_alike(encoder):
    with pytest.raises(UserError, match=r'"aply eye makeup" is none of the 3 classes. Alike are apply eye makeup\. '):
        encoder.check("aply eye makeup")
    with pytest.raises(UserError, match="They are apply eye makeup, yo yo, archery"):
        encoder.check("????")
    encoder.check("")
