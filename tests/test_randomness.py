import math

import pytest
import torch

from vidlab.randomness import KeyedRNG, generator, moment, seed_of


def test_seeds_are_the_published_blake2b():
    # printf '0\x1fclip\x1f3\x1fnoise' | b2sum -l 64   (coreutils; little-endian, then halved)
    expected = int.from_bytes(bytes.fromhex("60d0d2210caf3d33"), "little") // 2
    assert seed_of(0, "clip", 3, "noise") == expected
    assert seed_of("ab", "c") == int.from_bytes(bytes.fromhex("4449645a7ce72544"), "little") // 2
    assert 0 <= seed_of("") < 2**63
    # printf '0\x1fclip\x1f3.2\x1fnoise' | b2sum -l 64
    expected = int.from_bytes(bytes.fromhex("3ae0a51f8e86f8c6"), "little") // 2
    assert seed_of(0, "clip", moment(3, 2), "noise") == expected


def test_every_part_of_the_key_counts():
    base = ("0", "clip", 3, "noise")
    changed = [("1", *base[1:]), ("0", "clap", *base[2:]), ("0", "clip", 4, "noise"), ("0", "clip", 3, "t")]
    assert len({seed_of(*key) for key in [base, *changed]}) == 5
    assert seed_of("ab", "c") != seed_of("a", "bc")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_clip_has_its_numbers_whatever_its_batch_and_place(kind):
    together = getattr(KeyedRNG(3, ("a", "b", "c"), (0, 1, 0)), kind)("noise", (2, 5))
    alone = getattr(KeyedRNG(3, ("b",), (1,)), kind)("noise", (2, 5))
    turned = getattr(KeyedRNG(3, ("c", "b"), (0, 1)), kind)("noise", (2, 5))
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[[2, 1]], turned)
    expected = torch.empty(2, 5)
    getattr(expected, f"{kind}_")(generator=generator(3, "b", 1, "noise"))
    assert torch.equal(alone[0], expected)


def test_numbers_change_with_seed_epoch_purpose_and_clip_but_not_with_the_call():
    draw = KeyedRNG(0, ("a",), (0,))
    first = draw.normal("noise", (4,))
    torch.manual_seed(99)
    torch.randn(7)
    assert torch.equal(first, draw.normal("noise", (4,)))
    others = [
        KeyedRNG(1, ("a",), (0,)).normal("noise", (4,)),
        KeyedRNG(0, ("a",), (1,)).normal("noise", (4,)),
        KeyedRNG(0, ("b",), (0,)).normal("noise", (4,)),
        draw.normal("other", (4,)),
        KeyedRNG(0, ("a",), (0,), visits=(1,)).normal("noise", (4,)),
        KeyedRNG(0, ("a",), (0,), visits=(2,)).normal("noise", (4,)),
    ]
    assert torch.equal(first, KeyedRNG(0, ("a",), (0,), visits=(0,)).normal("noise", (4,)))
    assert all(not torch.isclose(first, other).any() for other in others)


def test_one_number_per_clip():
    u = KeyedRNG(0, tuple("abc"), (0, 0, 0)).uniform("t")
    assert u.shape == (3,) and u.dtype == torch.float32
    assert len(set(u.tolist())) == 3
    assert KeyedRNG(0, tuple("abc"), (0, 0, 0)).normal("t", ()).shape == (3,)


def test_the_distributions_over_many_clips_are_those_named():
    # 4096 clips of one number each: independent streams, so this looks across seeds, not along one stream
    count = 4096
    draw = KeyedRNG(0, tuple(map(str, range(count))), (0,) * count)
    normal, uniform = draw.normal("noise", ()), draw.uniform("t")
    tolerance = 5 / math.sqrt(count)  # five standard errors
    assert abs(normal.mean()) < tolerance and abs(normal.std() - 1) < tolerance
    below = sum((normal < z).float().mean() for z in (-1.0, 1.0))
    assert abs(below - 1) < tolerance  # symmetric
    assert abs((normal.abs() < 1).float().mean() - 0.682689) < tolerance
    deciles = torch.histc(uniform, bins=10, min=0, max=1) / count
    assert (deciles - 0.1).abs().max() < 5 * math.sqrt(0.09 / count)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1]) < tolerance


def test_keys_and_epochs_go_together():
    with pytest.raises(ValueError, match="2 keys but 1 epochs"):
        KeyedRNG(0, ("a", "b"), (0,))
    with pytest.raises(ValueError, match="2 keys but 1 visits"):
        KeyedRNG(0, ("a", "b"), (0, 0), visits=(0,))


def test_a_shared_number_is_that_of_the_batch_alone():
    one = KeyedRNG(3, ("a",), (0,), batch=7)
    assert one.shared("stage") == KeyedRNG(3, ("b", "c"), (1, 1), batch=7).shared("stage")
    others = [KeyedRNG(3, ("a",), (0,), batch=8).shared("stage"), KeyedRNG(4, ("a",), (0,), batch=7).shared("stage")]
    assert len({one.shared("stage"), one.shared("frame"), *others}) == 4
    drawn = [KeyedRNG(0, (), (), batch=number).shared("stage") for number in range(2000)]
    assert abs(sum(drawn) / 2000 - 0.5) < 0.03 and min(drawn) >= 0 and max(drawn) < 1
