"""What every test shares: shape checks at run time, a quiet machine, a cache of its own, tiny modules."""

# ruff: noqa: E402  the environment and the import hook come before everything they are for

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

gc.disable()  # until all tests are imported: nothing of that is garbage

# Before torch and mlflow are imported, for this process and for those that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# setuptools brings its own distutils and refuses to be imported after Python's; torch's compiler imports it late.
with suppress(ImportError):
    import setuptools  # noqa: F401

import pytest

import shape_checks

assert "vidlab" not in sys.modules, "vidlab was imported before its shape annotations could be checked"
shape_checks.install("vidlab")

import torch
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine

from quick_disk import commit_at_once, wait_for_no_disk
from shipped_choices import read_once
from vidlab.backbones.dit import DiT
from vidlab.clip import ClipBatch, LatentShape, TextEmbedding
from vidlab.layers.layouts import Full3D, LayerPlan, TokenLayout
from vidlab.randomness import KeyedRNG

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from cli.command import Commands
    from vidlab.training.video_diffusion import VideoDiffusion


# Set by any test that builds a Trainer with strategy=ddp; who inherits them takes itself for a launched process.
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Files that take longest, in this order. They come first, so that workers end together; tox.ini keeps xdist from
# sorting them. While the first one waits for the process that runs commands, the other workers do without it.
DEAR = (
    "tests/cli/test_bad_input", "tests/test_conf", "tests/test_compatibility", "tests/lab/test_image_models",
    "tests/lab/planner", "tests/cli", "tests/test_readme", "tests/lab", "tests/parallel", "tests/golden", "tests/test_",
    "tests/backbones", "tests/metrics", "tests/curation", "tests/fuzz", "tests/training", "tests/data", "tests/layers",
    "tests/callbacks", "tests/autoencoders",
)  # fmt: skip

# What Lightning says about any loader and loop that is not its own.
UNIMPORTANT = (
    "ignore:.*You defined a `validation_step` but have no `val_dataloader`",
    "ignore:.*`isinstance.treespec, LeafSpec.` is deprecated",
    "ignore:.*You have overridden `transfer_batch_to_device`",
    "ignore:.*resuming from a checkpoint that ended before the epoch ended",
    "ignore:.*does not have many workers",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as processors that this process may use; xdist counts cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_configure(config: pytest.Config) -> None:
    """Leave the warnings that mean something."""
    for line in UNIMPORTANT:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that reach the network, or take minutes, run only when asked for; files that take longest come first."""
    minutes = dict.fromkeys(("slow", "kills"), "takes minutes")
    for name, why in {"network": "needs the network", **minutes}.items():
        if name in (config.getoption("markexpr") or ""):
            continue
        skip = pytest.mark.skip(reason=f"{why}: run with `pytest -m {name}`")
        for item in items:
            if item.get_closest_marker(name):
                item.add_marker(skip)
    items.sort(key=lambda item: place_of(item.path.relative_to(config.rootpath).as_posix()))


def place_of(file: str) -> int:
    """Of a file in the order of DEAR."""
    return next((place for place, start in enumerate(DEAR) if file.startswith(start)), len(DEAR))


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not in the half million objects of what they import."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture(autouse=True)
def checked_from_the_first_call() -> None:
    """Each test has its functions checked anew."""
    shape_checks.begin_test()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VIDLAB_CACHE of the whole session, unless the caller has set one."""
    given = os.environ.get("VIDLAB_CACHE")
    folder = Path(given) if given else tmp_path_factory.mktemp("cache")
    os.environ["VIDLAB_CACHE"] = str(folder)
    yield folder
    if not given:
        del os.environ["VIDLAB_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def shipped_choices_are_read_once() -> Iterator[None]:
    read_anew = read_once()
    yield
    read_anew()


@pytest.fixture(scope="session", autouse=True)
def nobody_waits_for_the_disk() -> Iterator[None]:
    fsync = os.fsync
    wait_for_no_disk()
    yield
    os.fsync = fsync
    event.remove(Engine, "connect", commit_at_once)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny modules are fastest on one thread, and sums then have one order."""
    torch.set_num_threads(1)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its workers see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Commands]":
    """Runs programs and snippets in processes of their own, without the checks of shapes and without their imports."""
    from cli.command import Commands

    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHED:
            patch.delenv(name, raising=False)
        shared = shared_folder(tmp_path_factory)
        with FileLock(shared / "commands.lock"):
            server = Commands(tmp_path_factory.mktemp("commands"), shared / "commands.txt")
    yield server
    server.close()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once for all workers: creating its tables takes seconds."""
    from vidlab.lab.tracking.store import open_client

    folder = shared_folder(tmp_path_factory)
    database = folder / "empty.db"
    with FileLock(folder / "empty.db.lock"):
        if not database.exists():
            making = folder / "making.db"
            open_client(f"sqlite:///{making}").search_experiments()
            making.rename(database)
    return database


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Numbers that no Draw makes are the same in every run, whatever the order of tests."""
    torch.manual_seed(0)


TEXT_WIDTH = 10
LATENT = LatentShape(channels=3, frames=4, height=4, width=6)


@pytest.fixture
def latent() -> LatentShape:
    """The latents that ``make_dit`` builds for."""
    return LATENT


@pytest.fixture
def make_dit() -> Callable[..., DiT]:
    """Builds a DiT of about ten thousand parameters; keywords replace its settings."""

    def make(layouts: tuple[TokenLayout, ...] = (Full3D(),), **settings: object) -> DiT:
        sizes = {"width": 24, "depth": 2, "heads": 2, "patch": (1, 2, 2), "latent": LATENT}
        return DiT(text_width=TEXT_WIDTH, layouts=LayerPlan(layouts), **(sizes | settings))

    return make


@pytest.fixture
def make_text() -> Callable[..., TextEmbedding]:
    """Random text features; ``lengths`` are the numbers of real tokens."""

    def make(lengths: tuple[int, ...] = (5, 2), width: int = TEXT_WIDTH) -> TextEmbedding:
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        size = (len(lengths), max(lengths), width)
        return TextEmbedding(torch.randn(size) * mask[..., None], mask, torch.randn(len(lengths), width))

    return make


@pytest.fixture
def make_draw() -> Callable[..., KeyedRNG]:
    """Random numbers of clips "a", "b", ... in epoch 0."""

    def make(clips: int = 2, seed: int = 0) -> KeyedRNG:
        return KeyedRNG(seed, tuple("abcdefghij"[:clips]), (0,) * clips)

    return make


@pytest.fixture
def make_batch() -> Callable[..., ClipBatch]:
    """A batch of random pixels in [-1, 1] for the given clip keys, each a function of its key alone."""

    def make(keys: str = "ab", size: tuple[int, int, int] = (4, 8, 8), number: int = 0) -> ClipBatch:
        count = len(keys)
        pixels = KeyedRNG(7, tuple(keys), (0,) * count).uniform("pixels", (3, *size)) * 2 - 1
        captions = tuple(f"a {key} moves" for key in keys)
        return ClipBatch(pixels, captions, tuple(keys), (0,) * count, number, (8.0,) * count)

    return make


CLIP_SIZE = (4, 8, 8)


@pytest.fixture
def make_module() -> "Callable[..., VideoDiffusion]":
    """Builds a VideoDiffusion in pixel space for the clips of ``make_batch``; keywords replace its parts.

    Every parameter of its denoiser is random, so that it answers; ``built=False`` leaves the denoiser out.
    """
    from vidlab.autoencoders.identity import Identity
    from vidlab.diffusion.gaussian import GaussianObjective
    from vidlab.diffusion.parameterizations import Velocity
    from vidlab.diffusion.schedules import LinearPath
    from vidlab.diffusion.time_samplers import Uniform
    from vidlab.diffusion.weightings import Constant as Unweighted
    from vidlab.sampling.gaussian import GaussianSampler
    from vidlab.sampling.guidance import ClassifierFreeGuidance
    from vidlab.sampling.solvers import Euler
    from vidlab.text.words import WordsEncoder
    from vidlab.training.optimization.optimizers import Constant, OptimizerFactory
    from vidlab.training.video_diffusion import VideoDiffusion

    def make(built: bool = True, **parts: Any) -> VideoDiffusion:
        torch.manual_seed(0)
        defaults = {
            "backbone": partial(DiT, layouts=LayerPlan((Full3D(),)), width=12, depth=1, heads=2, patch=(2, 4, 4)),
            "objective": GaussianObjective(LinearPath(), Velocity(), Unweighted(), Uniform()),
            "autoencoder": Identity(),
            "text_encoder": WordsEncoder(width=8, depth=1, heads=2, rows=32, max_tokens=8),
            "clip_shape": CLIP_SIZE,
            "optimizer": OptimizerFactory(torch.optim.SGD, lr=0.05),
            "lr_schedule": Constant(),
            "sampler": GaussianSampler(Euler(), 2),
            "guidance": ClassifierFreeGuidance(2.0),
        }
        module = VideoDiffusion(**(defaults | parts))
        if built:
            module.configure_model()
            for parameter in module.denoiser.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        return module

    return make


@pytest.fixture
def loader() -> Callable[[list[ClipBatch]], torch.utils.data.DataLoader]:
    """A loader of given batches. (Lightning takes a bare list for several loaders.)"""
    return partial(torch.utils.data.DataLoader, batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture
def make_trainer(tmp_path: Path, loader: Callable) -> "Callable[..., Trainer]":
    """Builds a silent Trainer on the CPU that takes lists of batches; keywords replace its settings."""
    from lightning.pytorch import Trainer

    class BatchTrainer(Trainer):
        def fit(self, model: Any, batches: Any = None, val_batches: Any = None, **settings: Any) -> None:
            train, val = (None if x is None else loader(x) for x in (batches, val_batches))
            super().fit(model, train, val, **settings)

        def validate(self, model: Any, batches: list[ClipBatch], **settings: Any) -> Any:
            return super().validate(model, loader(batches), verbose=False, **settings)

    def make(**settings: Any) -> Trainer:
        defaults = {
            "accelerator": "cpu", "devices": 1, "max_steps": 2, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path, "log_every_n_steps": 1,
        }  # fmt: skip
        return BatchTrainer(**(defaults | settings))

    return make


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process alone, in a group of its own: a shard is then all there is, and gathered all the same."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
