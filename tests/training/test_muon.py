import copy
import math

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.training.muon import MuonWithAdamW
from vidlab.training.optimization import OptimizerFactory


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.table = nn.Parameter(torch.zeros(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x)) * self.table[0]
        return x + self.table[1]


def build(net: nn.Module, weight_decay: float = 0.0, lr: float = 0.1, **settings: object) -> MuonWithAdamW:
    factory = OptimizerFactory(lambda groups, lr: MuonWithAdamW(groups, lr=lr, **settings), lr, weight_decay)
    return factory.build(net)


def backward(net: nn.Module) -> None:
    net.zero_grad()
    net(torch.ones(5, 3)).square().sum().backward()


def test_who_updates_what():
    optimizer = build(Net())
    assert sorted(n for group in optimizer.muon.param_groups for n in group["names"]) == [
        "blocks.0.weight", "blocks.1.weight",
    ]  # fmt: skip
    rest = {n for group in optimizer.adamw.param_groups for n in group["names"]}
    assert rest == {"embed.weight", "embed.bias", "blocks.0.bias", "blocks.1.bias", "table"}


def test_a_matrix_moves_by_an_orthogonal_matrix_of_adams_size():
    # one step from zero momentum: U V^T of the gradient, times 0.2 sqrt(max(rows, columns)) lr (Liu et al. 2025)
    net = Net()
    net.table.data.fill_(1.0)
    optimizer, before = build(net, lr=0.01), net.blocks[0].weight.detach().clone()
    gradient = torch.randn(4, 4)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net.blocks[0].weight.grad = gradient.clone()
    optimizer.step()
    moved = (before - net.blocks[0].weight.detach()) / (0.01 * 0.2 * math.sqrt(4))
    u, _, v = torch.linalg.svd(gradient)
    assert torch.linalg.svdvals(moved).min() > 0.6 and torch.linalg.svdvals(moved).max() < 1.3  # Newton-Schulz, 5 steps
    assert (moved * (u @ v)).sum() / moved.norm() / 2 > 0.97


def test_the_schedule_reaches_both_parts():
    optimizer = build(Net())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert all(g["lr"] == 0 for part in (optimizer.muon, optimizer.adamw) for g in part.param_groups)


def test_resuming_goes_on_bit_for_bit():
    net = Net()
    net.table.data.fill_(0.5)
    optimizer = build(net)
    for _ in range(3):
        backward(net)
        optimizer.step()
    other = copy.deepcopy(net)
    resumed = build(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((net, optimizer), (other, resumed)):
        for _ in range(2):
            backward(each)
            by.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    for group in resumed.param_groups:
        group["lr"] = 0.25
    assert resumed.muon.param_groups[0]["lr"] == 0.25


def test_weight_decay_is_the_groups_own():
    optimizer = build(Net(), weight_decay=0.1)
    decay = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["names"]}
    assert decay["blocks.0.weight"] == 0.1 and decay["blocks.0.bias"] == 0.0


def test_what_cannot_be():
    with pytest.raises(UserError, match=r"matrices=\['nothing'\] takes no trainable parameter"):
        build(Net(), matrices=("nothing",))
    with pytest.raises(UserError, match="another optimiser"):
        build(Net()).load_state_dict({"state": {}, "param_groups": []})
