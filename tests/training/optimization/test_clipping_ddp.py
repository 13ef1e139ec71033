"""The communication hook between two gloo processes, against NumPy."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from processes import run_ranks
from vidlab.training.optimization.clipping import AdaptiveClipper, DeviceDecision, DeviceStatistics, NormStatistics
from vidlab.training.optimization.clipping_ddp import ClippingReducer

STEPS, RANKS = 300, 2


class Deciding:
    """Keeps the statistics, as a training loop does, and every decision."""

    def __init__(self, variant: str, device: str) -> None:
        self.clipper, self.statistics = AdaptiveClipper(variant), DeviceStatistics.of(NormStatistics(), device)
        self.decisions: list[DeviceDecision] = []

    def __call__(self, norms: torch.Tensor) -> DeviceDecision:
        self.decisions.append(self.clipper.decide_on_device(self.statistics, norms))
        self.statistics = self.decisions[-1].statistics
        return self.decisions[-1]


class Counting(ClippingReducer):
    """Counts the buckets of all steps."""

    buckets = 0

    def reduce(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.buckets += 1
        return super().reduce(state, bucket)


class Branches(nn.Module):
    """An MLP whose second branch is used by every other batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.second = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.first(x) + self.second(x) if both else self.first(x)


@dataclass(frozen=True)
class Case:
    """How a model is trained: micro-batches per step, and whether a branch is left unused now and then."""

    name: str
    variant: str = "released"
    steps: int = STEPS
    accumulate: int = 1
    unused: bool = False
    trouble: bool = True


CASES = (
    Case("released"),
    Case("paper", variant="paper", steps=80),
    Case("accumulated", steps=40, accumulate=3),
    Case("unused", steps=40, unused=True),
    Case("calm", steps=20, trouble=False),
)


def trouble(step: int, rank: int) -> float:
    """The factor on the loss: spikes, NaN and infinity on chosen ranks, sometimes on both."""
    if step in (7, 150, 151):
        return float("nan")
    if step % 23 == 11 and rank == 1:
        return 1e3
    if step % 31 == 17 and rank == 0:
        return float("nan")
    if step % 47 == 29 and rank == 1:
        return float("inf")
    if step % 71 == 60:
        return 1e4
    return 1.0


def flat(gradients) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients])


def stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(rows).float() if rows else torch.zeros(0)


def train(case: Case, rank: int, hooked: bool = True, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Train; keeps each step's local gradient, computed apart from DDP, and the one that DDP leaves."""
    torch.manual_seed(0)
    # several buckets, of at least 26 weights each
    model = DistributedDataParallel(Branches().to(device), bucket_cap_mb=0.0001, find_unused_parameters=case.unused)
    deciding = Deciding(case.variant, device)
    reducer = Counting(deciding)
    if hooked:
        reducer.register(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    source = torch.Generator().manual_seed(100 + rank)
    local, reduced = [], []
    for step in range(case.steps):
        optimizer.zero_grad()
        total = torch.zeros(sum(p.numel() for p in model.parameters()), device=device)
        for part in range(case.accumulate):
            x = torch.randn(8, 6, generator=source).to(device)
            factor = (trouble(step, rank) if case.trouble and part == 0 else 1.0) / case.accumulate
            both = not case.unused or (step + rank) % 2 == 0

            def loss(forward, x=x, both=both, factor=factor):
                return factor * (forward(x, both) - x.sum(1, keepdim=True)).square().mean()

            parameters = list(model.parameters())
            own = torch.autograd.grad(loss(model.module), parameters, allow_unused=True)
            total += flat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, own, strict=True)])
            if part < case.accumulate - 1:
                with model.no_sync():
                    loss(model).backward()
            else:
                loss(model).backward()
        local.append(total)
        reduced.append(flat([p.grad for p in model.parameters()]))
        if hooked and deciding.decisions[-1].skip:
            optimizer.zero_grad()
        optimizer.step()
    found = {
        "local": torch.stack(local),
        "reduced": torch.stack(reduced),
        "multipliers": stacked([d.multipliers for d in deciding.decisions]),
        "norms": stacked([d.norms for d in deciding.decisions]),
        "buckets": torch.tensor(reducer.buckets / case.steps),
        "weights": flat([p.detach() for p in model.parameters()]),
    }
    return {name: value.cpu() for name, value in found.items()}


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    found = {case.name: train(case, rank) for case in CASES}
    found["plain"] = train(CASES[-1], rank, hooked=False)
    torch.save(found, Path(folder) / f"{rank}.pt")
    # gloo's threads abort now and then when the interpreter ends before them
    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks(commands, folder, process, (free_port(), str(folder)), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def of(runs: list[dict], name: str, what: str) -> np.ndarray:
    """(ranks, ...) of one case."""
    return np.stack([run[name][what].double().numpy() for run in runs])


def reference(norms: np.ndarray, variant: str) -> np.ndarray:
    """Multipliers (steps, ranks) of norms of the same shape."""
    multipliers = np.zeros_like(norms)
    ema = var = None
    for step, gn in enumerate(norms):
        bound = np.inf if ema is None else ema + 3 * np.sqrt(var)
        good = np.array([np.isfinite(n) and n <= bound for n in gn])
        if good.any():
            multipliers[step, good] = len(gn) / good.sum()
        pool = gn[np.isfinite(gn)] if variant == "paper" else gn[good]
        if not pool.size:
            continue
        p = pool.max()
        if ema is None:
            ema = var = p
        elif variant == "paper" or (~good).sum() <= 1:
            ema = 0.99 * ema + 0.01 * p
            var = 0.99 * var + 0.01 * (p - ema) ** 2
    return multipliers


CLIPPED = [case for case in CASES if case.trouble]


@pytest.mark.parametrize("case", CLIPPED, ids=lambda case: case.name)
def test_multipliers_equal_numpy(runs, case):
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(of(runs, case.name, "local"), axis=-1).T
    expected = reference(norms, case.variant)
    for rank in range(RANKS):
        np.testing.assert_array_equal(of(runs, case.name, "multipliers")[rank], expected)
        np.testing.assert_allclose(of(runs, case.name, "norms")[rank], norms, rtol=1e-4)
    zeros = (expected == 0).sum(1)
    assert (zeros == 1).sum() >= 3 and (zeros == RANKS).sum() >= 1 and (zeros == 0).sum() > case.steps / 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reduced_gradients_are_the_mean_of_the_others(runs, case):
    local, multipliers = of(runs, case.name, "local"), of(runs, case.name, "multipliers")[0].T
    kept = np.where(multipliers[..., None] > 0, local, 0)
    expected = (multipliers[..., None] * kept).mean(0)
    for rank in range(RANKS):
        np.testing.assert_allclose(of(runs, case.name, "reduced")[rank], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_end_with_equal_finite_weights(runs, case):
    first, second = (run[case.name]["weights"] for run in runs)
    assert torch.equal(first, second) and first.isfinite().all()
    assert runs[0][case.name]["buckets"] > 2.5


def test_without_outliers_training_is_that_of_plain_ddp(runs):
    calm = of(runs, "calm", "multipliers")
    assert (calm == 1).all()
    assert torch.equal(runs[0]["calm"]["weights"], runs[0]["plain"]["weights"])


def gpu_process(rank: int, port: int, folder: str) -> None:
    ranks = torch.cuda.device_count()
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.save(train(CASES[0], rank, device=f"cuda:{rank}"), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible to torch")
def test_every_gpu_with_nccl(tmp_path):
    ranks = torch.cuda.device_count()
    mp.spawn(gpu_process, (free_port(), str(tmp_path)), nprocs=ranks)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    local = np.stack([run["local"].double().numpy() for run in found])
    with np.errstate(all="ignore"):
        expected = reference(np.linalg.norm(local, axis=-1).T, "released")
    kept = np.where(expected.T[..., None] > 0, local, 0)
    for run in found:
        np.testing.assert_array_equal(run["multipliers"].double().numpy(), expected.astype(np.float32))
        reduced = (expected.T[..., None] * kept).mean(0)
        np.testing.assert_allclose(run["reduced"].double().numpy(), reduced, rtol=1e-3, atol=1e-4)
        assert torch.equal(run["weights"], found[0]["weights"])
