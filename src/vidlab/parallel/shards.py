"""Tensors of which every process holds a shard (``DTensor``), and plain ones, treated alike.

A shard is told by its methods: importing its class takes time that runs without one need not spend.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds a shard of it."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What of it is here, sharing its memory."""
    found: Any = tensor
    own: Tensor = found.to_local() if is_shard(tensor) else tensor
    return own


def whole(tensor: Tensor) -> Tensor:
    """All of it; processes with its other shards must call this too."""
    found: Any = tensor
    full: Tensor = found.full_tensor() if is_shard(tensor) else tensor
    return full


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, sharded as ``like`` is and on its device; without an exchange."""
    tensor = tensor.to(like.device)
    if not is_shard(like) or is_shard(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shard: Any = like
    found: Tensor = distribute_tensor(tensor, shard.device_mesh, shard.placements, src_data_rank=None)
    return found


def is_row_shard(tensor: Tensor) -> bool:
    """Whether it is dealt out in rows, along dimension 0, over one dimension of processes."""
    placements: Any = getattr(tensor, "placements", ())
    return len(placements) == 1 and bool(placements[0].is_shard(0))


def from_rows(rows: Callable[[int, int], Tensor], shape: Sequence[int], mesh: Any) -> Tensor:
    """A tensor of which every process has its rows, dealt out as FSDP2 does: evenly, but for the last that has any.

    Args:
        rows: gives those from a first up to a last, without it, on the device of the processes.
        shape: of the whole tensor.
        mesh: the processes, in one dimension.
    """
    from torch.distributed.tensor import DTensor, Shard

    each = -(-shape[0] // mesh.size())
    first = min(each * mesh.get_local_rank(), shape[0])
    own = rows(first, min(first + each, shape[0]))
    size = torch.Size(shape)
    strides = torch.empty(size, device="meta").stride()
    found: Tensor = DTensor.from_local(own, mesh, (Shard(0),), run_check=False, shape=size, stride=strides)
    return found


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all of them together, on every process the same."""
    if not any(map(is_shard, tensors)):
        return nn.utils.get_total_norm(tensors)
    shards: list[Any] = [tensor for tensor in tensors if is_shard(tensor)]
    plain = [tensor for tensor in tensors if not is_shard(tensor)]
    norm = nn.utils.get_total_norm([local(shard) for shard in shards])
    square = norm.to(torch.promote_types(norm.dtype, torch.float32)).square()  # bfloat16 sums would lose digits
    torch.distributed.all_reduce(square, group=shards[0].device_mesh.get_group())
    return (square + nn.utils.get_total_norm(plain).to(square.device).square()).sqrt()


def clip_to(tensors: Iterable[Tensor], limit: float, norm: Tensor) -> None:
    """Scale gradients whose norm is ``norm`` to ``limit`` where it is larger."""
    own = [local(tensor) for tensor in tensors]
    torch._foreach_mul_(own, torch.clamp(limit / (norm + 1e-6), max=1.0).to(own[0].device))
