import copy
import math

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.training.optimization.muon import BatchedMuon, MuonWithAdamW
from vidlab.training.optimization.newton_schulz import orthogonalize
from vidlab.training.optimization.optimizers import OptimizerFactory


class Net(nn.Module):
    hidden_matrices = ("blocks.*",)

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


def stands_still_at_rate_zero(net: nn.Module, optimizer: MuonWithAdamW) -> bool:
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(net)
    backward(net)
    optimizer.step()
    return all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_who_updates_what():
    optimizer = build(Net())
    assert sorted(n for group in optimizer.muon.param_groups for n in group["names"]) == [
        "blocks.0.weight", "blocks.1.weight",
    ]  # fmt: skip
    rest = {n for group in optimizer.adamw.param_groups for n in group["names"]}
    assert rest == {"embed.weight", "embed.bias", "blocks.0.bias", "blocks.1.bias", "table"}


def test_patterns_win_over_what_networks_declare():
    optimizer = build(Net(), matrices=("*.1.weight",))
    assert [n for group in optimizer.muon.param_groups for n in group["names"]] == ["blocks.1.weight"]


def test_a_network_inside_another_declares_its_own_names():
    networks = nn.ModuleDict({"backbone": Net(), "text": Net()})
    groups = OptimizerFactory(torch.optim.AdamW, 0.1).groups(networks)
    assert sorted(n for group in groups for n in group["hidden"] if n.endswith("weight")) == [
        "backbone.blocks.0.weight", "backbone.blocks.1.weight", "text.blocks.0.weight", "text.blocks.1.weight",
    ]  # fmt: skip


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in units of what torch's own rounding to bfloat16 changes."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (5, 9), (1, 7), (64, 256)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_matrices_are_orthogonalized_together_as_torch_does_one_by_one(shape, dtype):
    from torch.optim._muon import _zeropower_via_newtonschulz

    matrices = torch.randn(3, *shape)
    found = orthogonalize(matrices, dtype)
    assert found.shape == matrices.shape and found.dtype == dtype
    for matrix, one in zip(matrices, found.float(), strict=True):
        exact = _in_float64(matrix)
        theirs = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
        assert alike(one, exact) < (1e-4 if dtype == torch.float32 else 1.5 * alike(theirs, exact) + 0.01)
    assert not orthogonalize(torch.zeros(2, *shape), dtype).any()


def _in_float64(matrix: torch.Tensor) -> torch.Tensor:
    """The published loop, in double precision."""
    x = matrix.double() / matrix.double().norm()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torch_within_bfloat16(decay):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.02, "weight_decay": decay, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    mine = BatchedMuon([block.weight for block in ours.blocks], "32-true", **settings)
    other = torch.optim.Muon([block.weight for block in theirs.blocks], **settings)
    for _ in range(5):
        for net, optimizer in ((ours, mine), (theirs, other)):
            backward(net)
            optimizer.step()
    for a, b in zip(ours.blocks, theirs.blocks, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=5 * 0.02 * 0.02)
    assert mine.state_dict().keys() == other.state_dict().keys()


def test_a_network_without_a_match_is_named(caplog):
    networks = nn.ModuleDict({"backbone": Net(), "other": nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))})
    build(networks)
    (said,) = caplog.messages
    assert said.startswith("optimizer.algorithm.matrices takes none of the 5 matrices of other: AdamW trains them all")
    assert "other.0.weight, other.1.weight, other.2.weight, ..." in said
    caplog.clear()
    build(Net())
    assert not caplog.messages


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
    net = Net()
    optimizer = build(net)
    assert stands_still_at_rate_zero(net, optimizer)


class ConvNet(nn.Module):
    hidden_matrices = ("blocks.*",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Conv3d(1, 4, (1, 2, 2))])


def test_a_kernel_moves_as_the_matrix_of_its_patches():
    # the same step as the matrix's, over two steps with momentum
    kernel, matrix = ConvNet(), Net()
    matrix.blocks[0].weight.data.copy_(kernel.blocks[0].weight.data.flatten(1))
    optimizers = build(kernel), build(matrix)
    for _ in range(2):
        gradient = torch.randn(4, 4)
        for net, optimizer in zip((kernel, matrix), optimizers, strict=True):
            optimizer.zero_grad()
            net.blocks[0].weight.grad = gradient.clone().view_as(net.blocks[0].weight)
            optimizer.step()
    assert torch.equal(kernel.blocks[0].weight.flatten(1), matrix.blocks[0].weight)
    optimizers[0].zero_grad()
    assert kernel.blocks[0].weight.grad is None


def test_a_kernel_resumes_bit_for_bit_and_may_have_moved():
    net = ConvNet()
    optimizer = build(net)
    gradients = torch.randn(4, 4, 1, 1, 2, 2).unbind(0)
    for gradient in gradients[:2]:
        net.blocks[0].weight.grad = gradient.clone()
        optimizer.step()
    other = copy.deepcopy(net)
    resumed = build(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.blocks[0].weight.data = other.blocks[0].weight.data.clone()  # as moving a module to a device does
    for each, by in ((net, optimizer), (other, resumed)):
        for gradient in gradients[2:]:
            each.blocks[0].weight.grad = gradient.clone()
            by.step()
    assert torch.equal(net.blocks[0].weight, other.blocks[0].weight)


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
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    resumed.load_state_dict(optimizer.state_dict())
    assert {group["lr"] for group in resumed.param_groups} == {0.25}  # set after the last step
    assert stands_still_at_rate_zero(other, resumed)


def test_weight_decay_is_the_groups_own():
    optimizer = build(Net(), weight_decay=0.1)
    decay = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["names"]}
    assert decay["blocks.0.weight"] == 0.1 and decay["blocks.0.bias"] == 0.0


def test_what_cannot_be():
    with pytest.raises(UserError, match=r"matrices=\['nothing'\] takes no trainable parameter"):
        build(Net(), matrices=("nothing",))
    with pytest.raises(UserError, match="another optimizer"):
        build(Net()).load_state_dict({"state": {}, "param_groups": []})
