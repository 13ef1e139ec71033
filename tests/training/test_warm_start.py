import json

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.training.warm_start import Source, inherit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.temporal = nn.Linear(3, 3)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def weights(value: float, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    own = {n: tuple(p.shape) for n, p in Net().named_parameters() if p.requires_grad}
    return {name: torch.full(shape, value) for name, shape in (own | shapes).items()}


def values(net: nn.Module) -> dict[str, float]:
    return {n: p.flatten()[0].item() for n, p in net.named_parameters() if p.requires_grad}


def test_two_sources_by_pattern():
    # STIV's T2V-512: temporal attention from one, the rest from the other
    net = Net()
    report = inherit(net, [Source("video", weights(1.0), ("*temporal*",)), Source("image", weights(2.0))])
    assert values(net) == {"embed.weight": 2, "embed.bias": 2, "temporal.weight": 1, "temporal.bias": 1}
    assert report.taken == {"video": ("temporal.weight", "temporal.bias"), "image": ("embed.weight", "embed.bias")}
    assert report.fresh == report.adapted == report.copied == ()
    assert report.unused == (
        "video: embed.weight", "video: embed.bias", "image: temporal.weight", "image: temporal.bias",
    )  # fmt: skip


def test_nothing_is_left_out_in_silence():
    net = Net()
    before = values(net)
    part = {name: w for name, w in weights(1.0).items() if name.startswith("embed")}
    with pytest.raises(UserError, match=r"2 of 4 weights are in none of \['part'\]: temporal.weight, temporal.bias"):
        inherit(net, [Source("part", part)])
    assert values(net) == before
    report = inherit(net, [Source("part", part)], fresh=["temporal.*"])
    assert report.fresh == ("temporal.weight", "temporal.bias")
    assert values(net)["temporal.weight"] == before["temporal.weight"]


def test_a_shape_is_adapted_or_refused():
    net, narrow = Net(), weights(1.0, **{"embed.weight": (3, 1)})
    with pytest.raises(UserError, match=r"embed.weight has shape \(3, 2\) here and \(3, 1\) in narrow"):
        inherit(net, [Source("narrow", narrow)])
    report = inherit(net, [Source("narrow", narrow)], adapt=lambda name, w: w.repeat(1, 2) / 2)
    assert report.adapted == ("embed.weight",) and values(net)["embed.weight"] == 0.5
    assert "embed.weight" not in report.taken["narrow"]


def test_a_part_starts_as_a_copy_of_another():
    net = Net()
    part = {"old.weight": torch.ones(3, 3), "old.bias": torch.zeros(3), **weights(2.0)}
    del part["temporal.weight"], part["temporal.bias"]
    report = inherit(net, [Source("s", part)], copies={"temporal.": "old."})
    assert report.copied == ("temporal.weight <- old.weight", "temporal.bias <- old.bias")
    assert values(net)["temporal.weight"] == 1


def test_the_report_is_read_and_kept(tmp_path):
    report = inherit(Net(), [Source("run", weights(1.0) | {"extra": torch.ones(1)})])
    assert report.text().splitlines() == [
        "inherited weights:", "  4 weights taken from run", "  1 unused: run: extra",
    ]  # fmt: skip
    report.write(tmp_path / "inherited.json")
    assert json.loads((tmp_path / "inherited.json").read_text())["unused"] == ["run: extra"]
