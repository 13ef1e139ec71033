"""Weights, gradients and optimizer state dealt out to all devices: PyTorch's FSDP2 through Lightning."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from vidlab.backbones.base import VideoDenoiser
from vidlab.digests import DamagedError
from vidlab.errors import UserError
from vidlab.parallel.ranks import sequence_parallel_of
from vidlab.parallel.shard_files import new_folder, remove_shards, write_shards
from vidlab.parallel.shards import from_rows, is_shard, local, sharded_like, whole
from vidlab.parallel.stored_shards import StoredTensor
from vidlab.training.checkpoint_io import load_checkpoint, not_written, shards_in_use
from vidlab.training.module import ClipModule
from vidlab.training.optimization.muon import MuonWithAdamW

# Methods besides ``forward`` by which denoisers and their blocks are called.
CALLED = ("with_queries_and_keys", "remember", "resume")


class FullyShardedStrategy(ModelParallelStrategy):
    """Every device keeps a shard of each trained weight, of its gradient and of its optimizer state (Zhao et al. 2023).

    A block's weights are gathered before it runs and dropped after it. The module shards itself in ``configure_model``,
    see ``shard``. Whichever way a checkpoint is written, a run goes on from it with any number of processes and any
    strategy, and is exported as ever.

    Args:
        save_distributed_checkpoint: each process writes what it keeps of weights, their average and optimizer state, so
            that none ever holds all of it: a file with the rest, and a folder of shards beside it. It needs a folder
            that all machines share. Otherwise all is gathered on the first process, into one file as of one device.
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # shards are there once the module is configured; callbacks then find the state at their start

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                local(own[name]).copy_(local(sharded_like(value, own[name])))

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        found: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return found

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
            for part in parts_of(optimizer):
                for parameter, entries in part.state.items():
                    entries.update(dict(_sharded_entries(parameter, entries)))

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        sharded = self._save_distributed_checkpoint
        written = self._with_shards_written(checkpoint, path) if sharded else self._on_first(checkpoint)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(written, path)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        found, problem = {}, None
        try:
            found = load_checkpoint(checkpoint_path, read=self._own_rows)
        except UserError as error:
            problem = str(error)
        problems: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(problems, problem)  # shards that others read may be damaged
        for problem in filter(None, problems):
            raise UserError(problem)
        return found

    def _own_rows(self, stored: StoredTensor) -> Tensor:
        """The rows of a stored tensor that this process keeps of a weight of its shape."""
        device = self.root_device
        return from_rows(
            lambda first, last: stored.rows(first, last).to(device), stored.shape, self.device_mesh["data_parallel"]
        )

    def _with_shards_written(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
        """What is to be the checkpoint's file, once each process has written its shards beside it."""
        from torch.distributed.checkpoint.api import CheckpointException

        folder = path
        if self.is_global_zero:
            with suppress(UserError, DamagedError):  # which shards a damaged file names is not known
                remove_shards(path, shards_in_use(path))
            folder = new_folder(path)
        folder = Path(self.broadcast(str(folder)))
        try:
            return write_shards(checkpoint, folder)
        except (CheckpointException, OSError) as error:
            if self.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            failed = getattr(error, "failures", {0: (error, None)})
            raise not_written(path, next(iter(failed.values()))[0]) from None

    def _on_first(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with whole tensors on the first process; nothing to speak of on the others, which help gather."""
        first = self.global_rank == 0
        return dict(tree_map_only(Tensor, lambda one: _kept(whole(one.detach()), first), state))


def _kept(tensor: Tensor, first: bool) -> Tensor:
    return tensor.cpu() if first else tensor.new_empty(0)


def _sharded_entries(parameter: Tensor, entries: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in entries.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield name, sharded_like(value, parameter)


def parts_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """The optimizers that hold a state of their own."""
    return (optimizer.muon, optimizer.adamw) if isinstance(optimizer, MuonWithAdamW) else (optimizer,)


def shard(module: nn.Module, mesh: Any, dtype: torch.dtype | None) -> None:
    """Shard the trained weights of a module in place, dimension 0 over all processes; once, later calls do nothing.

    Every block of a denoiser is gathered by itself, and the rest of it, a trained text encoder and each regularizer
    with parameters as a whole.

    Args:
        module: a training module; each child with a trained weight is sharded.
        mesh: the processes.
        dtype: in which the weights of blocks are gathered, and gradients are then averaged in float32; None is that of
            the weights for both.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if any(map(is_shard, module.parameters())):
        return
    averaged = None if dtype is None else torch.float32
    of_blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=averaged, cast_forward_inputs=False)
    of_rest = replace(of_blocks, param_dtype=None)
    for network in _networks(module):
        for block in blocks_of(network):
            _shard_one(block, mesh, of_blocks)
        _shard_one(network, mesh, of_rest)


def _shard_one(module: nn.Module, mesh: Any, policy: Any) -> None:
    """Shard what of it is not sharded yet, to be gathered whenever it is called."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name in CALLED:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def gathered_dtype(trainer: Any) -> torch.dtype | None:
    """In which weights of blocks are gathered: that of the matrix products where it is bfloat16, else their own."""
    return torch.bfloat16 if "bf16" in str(trainer.precision_plugin.precision) else None


@dataclass(frozen=True)
class ShardedWeights:
    """Bytes of what ``shard`` shards.

    Args:
        kept: of all of it, of which each process keeps its share.
        gathered: of all of it as it is gathered, which is done before the forward and before the backward pass.
        averaged: of its gradients as they are averaged.
        whole: there at once at most: two blocks, one of which is gathered ahead, the rest, and their gradients.
    """

    kept: int
    gathered: int
    averaged: int
    whole: int


def sharded_weights(module: nn.Module, dtype: torch.dtype | None) -> ShardedWeights:
    """What ``shard`` with these arguments shards, of a module that is not sharded."""
    kept = gathered = averaged = whole = 0
    for network in _networks(module):
        blocks = [list(block.parameters()) for block in blocks_of(network)]
        inside = {parameter for block in blocks for parameter in block}
        rest = [parameter for parameter in network.parameters() if parameter not in inside]
        of_blocks, of_rest = [_bytes(block, dtype) for block in blocks], _bytes(rest)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kept += _bytes(network.parameters())
        gathered += sum(of_blocks) + of_rest
        averaged += _bytes(trained, None if dtype is None else torch.float32)
        whole += 2 * (2 * max(of_blocks, default=0) + of_rest)
    return ShardedWeights(kept, gathered, averaged, whole)


def _bytes(parameters: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    return sum(one.numel() * (dtype or one.dtype).itemsize for one in parameters)


def _networks(module: nn.Module) -> list[nn.Module]:
    """What is called as a whole and has trained weights."""
    children: list[nn.Module] = []
    for child in module.children():
        children += child.children() if isinstance(child, nn.ModuleDict) else [child]
    return [child for child in children if any(p.requires_grad for p in child.parameters())]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a denoiser that it calls one by one: those lists of modules whose matrices lie inside."""
    if not isinstance(network, VideoDenoiser):
        return []
    lists = [(name, child) for name, child in network.named_children() if isinstance(child, nn.ModuleList)]
    inside = [child for name, child in lists if any(fnmatch(f"{name}.0", one) for one in network.hidden_matrices)]
    return [block for child in inside for block in child if any(True for _ in block.parameters())]


def shards_of(trainer: Any) -> int:
    """Processes that keep a share of each trained weight; 1 where each keeps all of them."""
    return int(trainer.world_size) if isinstance(trainer.strategy, FullyShardedStrategy) else 1


def check_parallelism(trainer: Any, module: ClipModule) -> None:
    """Refuse what cannot share clips or train on shards, before anything is computed.

    Raises:
        UserError: a model that cannot share clips; a task that trains whole weights.
    """
    module.check_sharing(sequence_parallel_of(trainer))
    if not isinstance(trainer.strategy, FullyShardedStrategy):
        return
    if not hasattr(type(module), "denoiser"):
        raise UserError(f"trainer=fsdp2 shards denoisers, and {type(module).__name__} trains none. Use trainer=ddp.")
