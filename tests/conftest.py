"""What every test shares: shape checks at run time, a quiet machine, a cache of its own, tiny modules."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch and mlflow are imported, for this process and for those that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
from jaxtyping import install_import_hook

# Every annotation of vidlab is checked at run time, shapes included. An int is a float, as PEP 484 has it.
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
assert "vidlab" not in sys.modules, "vidlab was imported before its shape annotations could be checked"
install_import_hook("vidlab", TYPECHECKER)

import torch

from vidlab.backbones.base import LatentShape
from vidlab.backbones.dit import DiT
from vidlab.clip import ClipBatch, TextEmbedding
from vidlab.layers.layouts import Full3D, TokenLayout
from vidlab.randomness import Draw


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that reach the network run only when they are asked for."""
    if "network" in (config.getoption("markexpr") or ""):
        return
    skip = pytest.mark.skip(reason="needs the network: run with `pytest -m network`")
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(skip)


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
def one_thread() -> None:
    """Tiny modules are fastest on one thread, and sums then have one order."""
    torch.set_num_threads(1)


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
        return DiT(text_width=TEXT_WIDTH, layouts=layouts, **(sizes | settings))

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
def make_draw() -> Callable[..., Draw]:
    """Random numbers of clips "a", "b", ... in epoch 0."""

    def make(clips: int = 2, seed: int = 0) -> Draw:
        return Draw(seed, tuple("abcdefghij"[:clips]), (0,) * clips)

    return make


@pytest.fixture
def make_batch() -> Callable[..., ClipBatch]:
    """A batch of random pixels in [-1, 1] for the given clip keys, each a function of its key alone."""

    def make(keys: str = "ab", size: tuple[int, int, int] = (4, 8, 8), number: int = 0) -> ClipBatch:
        count = len(keys)
        pixels = Draw(7, tuple(keys), (0,) * count).uniform("pixels", (3, *size)) * 2 - 1
        captions = tuple(f"a {key} moves" for key in keys)
        return ClipBatch(pixels, captions, tuple(keys), (0,) * count, number, (8.0,) * count)

    return make
