"""The floors of docs/design.md: a room imports only from rooms below it."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vidlab"
ENTRY_POINTS = sorted(
    path for path in ROOT.glob("*.py") if "vidlab.lab.cli.hydra_main" in path.read_text()
)  # train.py, generate.py, ...
FLOORS = (
    (
        "clip",
        "assets",
        "chat",
        "command_line",
        "digests",
        "errors",
        "factors",
        "features",
        "files",
        "hub",
        "package_index",
        "parallel",
        "precision",
        "randomness",
        "redaction",
        "structure",
        "tensors",
    ),
    ("layers", "diffusion", "perceptual"),
    ("backbones", "autoencoders", "text", "losses", "conditioning"),
    ("cost",),
    ("sampling", "data"),
    ("pipelines",),
    ("metrics", "curation"),
    ("training",),
    ("callbacks",),
    ("lab",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("torch", "lightning", "mlflow", "transformers", "av", "cv2", "pyarrow", "matplotlib", "diffusers")
# Within the lowest floor rooms know each other; above it, two rooms of one floor do not.
GROUND = set(FLOORS[0])


parsed = cache(ast.parse)  # four tests read every module


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a module, in functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import by full name"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(room: str, source: str) -> list[str]:
    """Imports of ``source``, a module of ``room``, that go up or sideways."""
    found = []
    for line, name in imported(parsed(source)):
        parts = name.split(".")
        if parts[0] != "vidlab" or len(parts) < 2:
            continue
        other = parts[1]
        if other not in FLOOR_OF and other.startswith("_"):
            continue  # vidlab.__version__
        below = FLOOR_OF[other] < FLOOR_OF[room] or (other in GROUND and room in GROUND)
        if other != room and not below:
            found.append(f"line {line}: {room} imports {name}")
    return found


def test_every_room_has_a_floor():
    assert {room_of(path) for path in modules()} <= set(FLOOR_OF)
    assert len(modules()) > 30 and {path.name for path in ENTRY_POINTS} >= {"train.py", "generate.py"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    assert violations(room_of(path), path.read_text()) == []


def test_the_test_of_floors_sees_violations():
    assert violations("layers", "from vidlab.backbones.dit import DiT")  # up
    assert violations("layers", "import vidlab.diffusion.schedules")  # sideways
    assert violations("data", "def f():\n    from vidlab import training")  # inside a function
    assert violations("layers", "from vidlab.layers.rope import rotate\nfrom vidlab.errors import UserError") == []


def imports_by_name(source: str) -> list[str]:
    """Calls that import a module by a name that the test of floors cannot see."""
    calls = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call)]
    return [f"line {c.lineno}: {ast.unparse(c)}" for c in calls if ast.unparse(c.func) in BY_NAME]


BY_NAME = ("importlib.import_module", "import_module", "__import__", "exec", "eval")
# which import what a configuration or the command line names, or other packages
MAY = ("lab/cli/hydra_main.py", "lab/cli/programs.py", "lab/cli/lean_imports.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_imported_around_the_floors(path):
    assert imports_by_name(path.read_text()) == [] or str(path.relative_to(SOURCE)) in MAY


def test_the_test_of_imports_by_name_sees_them():
    assert imports_by_name("import importlib\nimportlib.import_module('vidlab.lab')")
    assert imports_by_name("import re\nre.compile('x')") == []


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected groups of more than one file (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in imports[name]:
            if other not in number:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == number[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            found.extend([sorted(group)] if len(group) > 1 else [])

    for name in imports:
        if name not in number:
            visit(name)
    return found


def of_files(names: Iterable[tuple[int, str]], files: Container[str]) -> set[str]:
    """The files that are imported; a room's own description is not, where one of its files is."""
    found = {other for _, other in names if other in files}
    return {other for other in found if not any(one.startswith(f"{other}.") for one in found)}


def test_no_circle_of_files():
    files = {dotted(path): path for path in modules()}
    imports = {
        name: {other for other in of_files(imported(parsed(path.read_text())), files) if other != name}
        for name, path in files.items()
    }
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_room_is_crowded():
    counts = Counter(path.parent for path in SOURCE.rglob("*.py"))
    assert {str(room.relative_to(SOURCE)): count for room, count in counts.items() if count > 15} == {}


MOST_LINES = {"file": 350, "class": 250, "function": 55}  # decorators are not counted


def too_large(name: str, source: str) -> list[str]:
    """What of a module has more lines than a reader takes in at a time."""
    tree = parsed(source)
    sizes = [("file", name, len(source.splitlines()))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            sizes.append((kind, f"{name}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1))
    return [f"{kind} {what}: {lines} lines" for kind, what, lines in sizes if lines > MOST_LINES[kind]]


def test_nothing_is_too_large():
    files = [(str(path.relative_to(SOURCE)), path.read_text()) for path in SOURCE.rglob("*.py")]
    assert [what for name, source in files for what in too_large(name, source)] == []


def test_the_test_of_sizes_sees_them():
    body = "    pass\n"
    assert too_large("a", "def f():\n" + body * 54) == []
    assert too_large("a", "def f():\n" + body * 55) == ["function a:1 f: 56 lines"]
    assert too_large("a", "class A:\n" + body * 250) == ["class a:1 A: 251 lines"]
    assert too_large("a", "x = 1\n" * 351) == ["file a: 351 lines"]


def names_a_model(node: ast.AST) -> bool:
    text = ast.unparse(node).lower()
    return any(word in text for word in ("model", "backbone", "denoiser", "objective", "system"))


def model_branches(source: str) -> list[str]:
    """Comparisons of a model's or objective's name or class with a constant: what ``_target_`` is for."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = [s for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, str) and s.value]
            lists = [
                s
                for s in sides
                if isinstance(s, ast.Tuple | ast.List | ast.Set) and isinstance(s.elts[0], ast.Constant)
            ]
            others = [s for s in sides if s not in texts and s not in lists]
            # "text" in config is a question about keys, not about which model it is
            equality = isinstance(node.ops[0], ast.Eq | ast.NotEq) or lists
            if (texts or lists) and equality and any(names_a_model(s) for s in others):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            if kinds & {"DiT", "PyramidFlow", "GaussianObjective"}:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", [*modules(), *ENTRY_POINTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_branches_on_which_model_it_is(path):
    assert model_branches(path.read_text()) == []


def test_the_test_of_branches_sees_them():
    assert model_branches('if cfg.model.name == "dit": pass')
    assert model_branches('x = 1 if model in ("dit", "mmdim") else 2')
    assert model_branches("isinstance(self.backbone, DiT)")
    assert model_branches('if "config" not in model: pass') == []


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=lambda path: path.name)
def test_help_needs_no_heavy_package(path):
    code = f"""
import runpy, sys
sys.argv = [{str(path)!r}, "--help"]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "HEAVY []"
    assert len(run.stdout) > 200  # it did print its help
