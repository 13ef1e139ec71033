import subprocess
import sys
from types import ModuleType

import pytest

from vidlab.lab.cli.lean_imports import NestedFinder, PackageByPart, class_later, import_by_part

LEAN = """
import sys
from vidlab.lab.cli.lean_imports import prepare_imports
prepare_imports()
import vidlab.lab.train
import vidlab.metrics.base
import torch
weight = torch.nn.Parameter(torch.ones(2))
weight.grad = torch.ones(2)
optimizer = torch.optim.AdamW([weight])
optimizer.step()
optimizer.zero_grad()
from vidlab.layers.compilation.blocks import any_length, no_view
no_view(any_length(torch.ones(1, 2, 3)))
slow = {"transformers", "scipy", "mlflow", "torchmetrics.functional", "sympy", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""
WHOLE = """
from torchmetrics import Metric, __version__
import torchmetrics
assert torchmetrics.metric.Metric is Metric and __version__[0].isdigit()
from torchmetrics import MeanMetric, functional
assert issubclass(MeanMetric, Metric) and callable(functional.mean_squared_error)
assert type(torchmetrics).__name__ == "module" and "Accuracy" in dir(torchmetrics)
from lightning.fabric.wrappers import OptimizedModule
linear = torch.nn.Linear(2, 2)
assert not isinstance(linear, OptimizedModule)
compiled = torch.compile(linear, backend="eager")
assert isinstance(compiled, OptimizedModule) and not isinstance(linear, OptimizedModule)
optimizer.zero_grad()
optimizer.step()
import torch._dynamo.utils
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils and type(torch._dynamo).__name__ == "module"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, whose ``__init__`` imports one of them, which asks the package for a name."""
    folder = tmp_path / "slowly"
    folder.mkdir()
    (folder / "__init__.py").write_text("before = 1\nfrom slowly.part import part\n__all__ = ['part']\n")
    (folder / "part.py").write_text("from slowly import before\npart = [before]\n")
    (folder / "wrong.py").write_text("from slowly import nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_by_part("slowly", {"light": lambda: "light"})
    yield sys.modules["slowly"]
    for name in [name for name in sys.modules if name.split(".")[0] == "slowly"]:
        del sys.modules[name]


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """A package with a package inside, whose ``__init__`` imports a module of its own, and a plain module."""
    inner = tmp_path / "outside" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "plain.py").write_text("class Shape: pass\n")
    (inner / "__init__.py").write_text("from . import module\nfrom .module import count\n")
    (inner / "module.py").write_text("count = [0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    parts = {"outside.inner": {"light": lambda: "light"}, "outside.plain": {"also": lambda: "also"}}
    monkeypatch.setattr(sys, "meta_path", [NestedFinder(parts), *sys.meta_path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
        del sys.modules[name]


@pytest.mark.parametrize("after", ["", pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["lean", "and all is found"])
def test_a_training_imports_no_metric_of_others_and_finds_all_of_them(after):
    done = subprocess.run([sys.executable, "-c", LEAN + after], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_known_name_runs_no_code_of_the_package(package):
    from slowly import light

    assert light == "light" and type(package) is PackageByPart and "slowly.part" not in sys.modules


def test_any_other_name_runs_the_package_once(package):
    from slowly import part

    assert part == [1] and type(package) is ModuleType and sys.modules["slowly"] is package
    from slowly.part import part as same

    assert same is part


def test_all_names_are_listed(package):
    assert {"part", "before"} <= set(dir(package))
    assert dir(package)


def test_a_name_that_is_nowhere_is_missing(package):
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        import slowly.wrong  # noqa: F401
    assert type(package) is ModuleType


def test_an_init_that_fails_fails_again(package, tmp_path):
    (tmp_path / "slowly" / "__init__.py").write_text("raise OSError('no disk')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="no disk"):
            package.other  # noqa: B018
    assert type(package) is PackageByPart


def test_what_is_imported_or_absent_is_left_alone(package):
    import_by_part("slowly", {})
    import_by_part("json", {})
    import_by_part("there_is_no_such_package", {})
    assert sys.modules["slowly"] is package and type(sys.modules["json"]) is ModuleType
    assert "there_is_no_such_package" not in sys.modules


def test_known_names_of_nested_modules_run_no_code(nested):
    from outside.inner import light
    from outside.plain import also

    assert (light, also) == ("light", "also") and "outside.inner.module" not in sys.modules
    assert type(sys.modules["outside.inner"]) is PackageByPart is type(sys.modules["outside.plain"])


def test_a_module_of_a_nested_package_runs_the_package_first_and_is_imported_once(nested):
    import outside.inner
    import outside.inner.module as found

    assert found is outside.inner.module is sys.modules["outside.inner.module"]
    assert found.count is outside.inner.count and type(outside.inner) is ModuleType
    assert found.__spec__.origin.endswith("module.py")
    with pytest.raises(ImportError):
        import outside.inner.nowhere


def test_a_class_to_come_has_no_instances_before(nested):
    from outside.plain import also  # noqa: F401

    later = class_later("outside.plain", "Shape")
    assert not isinstance(3, later) and type(sys.modules["outside.plain"]) is PackageByPart
    shape = sys.modules["outside.plain"].Shape()
    assert isinstance(shape, later) and not isinstance(3, later)
