"""Adaptive gradient clipping between the ranks of DistributedDataParallel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from vidlab.parallel.exchange import Team
from vidlab.training.optimization.clipping import DeviceDecision, global_norm


@dataclass(frozen=True)
class WaitingBucket:
    """A bucket whose gradients are ready and not yet reduced.

    Args:
        buffer: the flat local gradients.
        future: resolves to the reduced gradients.
        ready: the moment on the device at which the buffer is filled; None on the CPU.
    """

    buffer: Tensor
    future: Future[Tensor]
    ready: torch.cuda.Event | None


class ClippingReducer:
    """A communication hook that judges the ranks' whole gradients before it averages them.

    A rank's norm is known only when its last bucket is filled. Until then buckets wait, and their futures with them.
    The last one brings the norms of all ranks together, asks for a decision, rescales every bucket and sums it over
    the ranks. So reduction does not overlap with the backward pass; the host waits for nothing. Norms are those of the
    gradients that would be reduced: with accumulation under ``no_sync``, of the accumulated ones. When no rank is left,
    gradients are zero; the caller must not take the step.

    Args:
        decide: called with the norms of all ranks (N,), in their order, once per reduction; every rank gets the same
            norms and must come to the same decision.
        group: the ranks; None is all of them.
        team: neighbors that share clips; a gradient is theirs together, and counts as one. None where none do.
    """

    def __init__(
        self,
        decide: Callable[[Tensor], DeviceDecision],
        group: dist.ProcessGroup | None = None,
        team: Team | None = None,
    ) -> None:
        self.decide = decide
        self.group = group
        self.team = team or Team(0, 1)
        self._waiting: list[WaitingBucket] = []

    def register(self, model: DistributedDataParallel) -> None:
        """Take over the reduction of a model's gradients; a model takes one communication hook."""
        self.group = model.process_group
        model.register_comm_hook(None, self.reduce)

    def reduce(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """The hook: buckets come in their order, the last one last."""
        if bucket.index() == 0:
            self._waiting = []  # a backward pass that failed half-way may have left some
        self._waiting.append(_waiting(bucket.buffer()))
        future = self._waiting[-1].future
        if bucket.is_last():
            self._reduce_all()
        return future

    def _reduce_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for bucket in waiting:
            if bucket.ready is not None:
                bucket.ready.wait()
        buffers = [bucket.buffer for bucket in waiting]
        self._average_in_team(buffers)
        decision = self.decide(self._norms(buffers))
        ranks = dist.get_world_size(self.group)
        own = dist.get_rank(self.group) // self.team.size
        multiplier, abnormal = decision.multipliers[own] / ranks, ~decision.kept[own]
        for buffer in buffers:
            buffer.mul_(multiplier).masked_fill_(abnormal, 0)  # a product with 0 would keep what is not a number
        works = [dist.all_reduce(buffer, group=self.group, async_op=True) for buffer in buffers]
        for work in works:
            work.wait()
        for bucket in waiting:
            bucket.future.set_result(bucket.buffer)

    def _average_in_team(self, buffers: Sequence[Tensor]) -> None:
        if self.team.size > 1:
            for buffer in buffers:
                dist.all_reduce(buffer, group=self.team.group)
                buffer.div_(self.team.size)

    def _norms(self, buffers: Sequence[Tensor]) -> Float[Tensor, "N"]:
        norms = torch.zeros(dist.get_world_size(self.group) // self.team.size, device=buffers[0].device)
        if self.team.rank == 0:
            norms[dist.get_rank(self.group) // self.team.size] = global_norm(buffers)
        dist.all_reduce(norms, group=self.group)  # every backend sums; each place has one number that is not zero
        return norms


def _waiting(buffer: Tensor) -> WaitingBucket:
    if buffer.device.type != "cuda":
        return WaitingBucket(buffer, Future(), None)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(buffer.device))
    return WaitingBucket(buffer, Future(devices=[buffer.device]), ready)
