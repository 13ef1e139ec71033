"""Shards in the one process of a group: what is gathered, in which numbers, and by which calls."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from parallel.shared_cases import CASES, loss_of, trained
from vidlab.backbones.base import VideoDenoiser
from vidlab.parallel.shards import local
from vidlab.training.optimization.fully_sharded import ShardedWeights, shard, sharded_weights
from vidlab.training.precision_plugins import precision_plugin

CASE = next(case for case in CASES if case.name == "skiparse")


def holding(network: VideoDenoiser) -> nn.Module:
    module = nn.Module()
    module.backbone = network
    return module


def test_gradients_of_float64_weights_keep_their_digits(mesh: Any) -> None:
    plain = trained(CASE)
    sharded = deepcopy(plain)
    shard(holding(sharded), mesh, None)
    for network in (plain, sharded):
        loss_of(network, CASE).backward()
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(local(b.grad), a.grad, rtol=1e-12, atol=1e-12)


def test_bytes_that_are_sharded() -> None:
    network = trained(CASE).float()
    blocks = [sum(p.numel() for p in block.parameters()) for block in network.blocks]
    everything = sum(p.numel() for p in network.parameters())
    rest = everything - sum(blocks)
    found = sharded_weights(holding(network), torch.bfloat16)
    gathered = 2 * sum(blocks) + 4 * rest
    assert found == ShardedWeights(4 * everything, gathered, 4 * everything, 2 * (2 * 2 * max(blocks) + 4 * rest))
    assert sharded_weights(holding(network.requires_grad_(False)), None) == ShardedWeights(0, 0, 0, 0)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_shards_have_the_type_of_the_precision(make_module: Any, mesh: Any, precision: str, dtype: torch.dtype) -> None:
    module = make_module()
    plugin = precision_plugin(precision, "cpu")
    module._trainer, module._device_mesh = SimpleNamespace(precision_plugin=plugin), {"data_parallel": mesh}
    module.configure_model()
    plugin.convert_module(module)  # a strategy does so too, behind it
    assert {local(p).dtype for p in module.parameters() if p.requires_grad} == {dtype}
