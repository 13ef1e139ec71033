import torch

from vidlab.conditioning.micro import micro_conditions

SHAPES = {"original_resolution": (2,), "crop": (2,), "sampling_stride": (1,), "frames": (1,), "token_drop": (6,)}


def test_an_uncropped_clip_by_hand(make_draw):
    found = micro_conditions(SHAPES, (8, 32, 48), 2)
    assert {name: value.tolist() for name, value in found.items()} == {
        "original_resolution": [[32, 48]] * 2, "crop": [[0, 0]] * 2, "sampling_stride": [[1]] * 2, "frames": [[8]] * 2,
    }  # fmt: skip
    assert micro_conditions({}, (8, 32, 48), 2) == {}


def test_given_numbers_and_keyed_token_drop(make_draw):
    found = micro_conditions(SHAPES, (8, 32, 48), 2, make_draw(2), {"sampling_stride": (7,)})
    assert found["sampling_stride"].flatten().tolist() == [7, 7]
    assert torch.equal(found["token_drop"][:1], micro_conditions(SHAPES, (8, 32, 48), 1, make_draw(1))["token_drop"])
    assert found["token_drop"].shape == (2, 6) and not torch.equal(*found["token_drop"])
