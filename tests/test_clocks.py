"""No test measures time: a slower machine, or a busy one, would fail it. Speed is measured in benchmarks/."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = {"perf_counter", "process_time", "monotonic", "thread_time", "time", "times", "timeit"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS} | {"ru_utime", "ru_stime"}
MODULES = {"time", "timeit", "os", "resource"}


def reads_clock(node: ast.AST) -> bool:
    """Whether an expression itself reads a clock, such as ``time.monotonic()`` or ``usage.ru_utime``."""
    if isinstance(node, ast.Attribute):
        of_module = isinstance(node.value, ast.Name) and node.value.id in MODULES
        return (node.attr.startswith("ru_") and node.attr in CLOCKS) or (of_module and node.attr in CLOCKS)
    return isinstance(node, ast.Name) and node.id in CLOCKS - {"time", "times"}


def measures(node: ast.AST, measured: set[str]) -> bool:
    """Whether an expression depends on a clock or on a name that does."""
    return any(reads_clock(part) or (isinstance(part, ast.Name) and part.id in measured) for part in ast.walk(node))


def names_of(target: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}


def timed_asserts(source: str) -> list[str]:
    """Assertions on measured time, in a module and in code that it holds as text.

    A wait with an end, ``while ...: assert time.monotonic() < deadline``, measures nothing.
    """
    tree, found = ast.parse(source), []
    for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)]:
        measured: set[str] = set()
        waits = {id(inner) for node in ast.walk(scope) if isinstance(node, ast.While) for inner in ast.walk(node)}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and measures(node.value, measured):
                measured |= set().union(*map(names_of, node.targets))
            if isinstance(node, ast.Assert) and id(node) not in waits and measures(node.test, measured):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nimport" in node.value:
                found += [f"line {node.lineno}: text with {name}" for name in CLOCKS if f"time.{name}" in node.value]
    return sorted(set(found))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_measures_time(path):
    if path != Path(__file__):
        assert timed_asserts(path.read_text()) == []


def test_measured_time_is_seen():
    assert timed_asserts("def f():\n  a = time.perf_counter()\n  g()\n  assert time.perf_counter() - a < 3")
    assert timed_asserts("def f():\n  a = time.perf_counter()\n  b = process_time() - a\n  assert b < 3")
    assert timed_asserts("u = resource.getrusage(0)\nassert u.ru_utime < 3")
    assert timed_asserts("CODE = '''\nimport time\nprint(time.process_time())'''")
    assert timed_asserts("while not ready():\n  assert time.monotonic() < deadline") == []
    assert timed_asserts("quiet = time.sleep(3)\nassert resource.getrusage(0).ru_minflt < 9") == []
