"""Annotations of vidlab, shapes included, checked at run time.

jaxtyping's import hook puts a decorator on every function and record, which checks arguments twice and binds each call
to its signature: a third of what a training run costs in the tests. ``checked`` stands in for that decorator. It checks
the same, arguments once and only those that an annotation speaks of, and it leaves out the calls of a function after
the first ``MOST`` of a test, which would take a fifth of all time: a loop hands on what it has handed on before.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_args

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 has it.
TYPES = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
AS_JAXTYPING = jaxtyping.jaxtyped
MOST = 50
_checked: dict[Callable[..., Any], int] = {}  # calls of each function in this test


def begin_test() -> None:
    """Calls are counted from here."""
    _checked.clear()


def install(package: str) -> None:
    """Check the annotations of every module of a package that is imported from here on."""
    jaxtyping.install_import_hook(package, "shape_checks.TYPES")
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Callable[[Any], Any] | None = None) -> Any:
    """A function whose arguments and result are checked at every call, or a record checked when it is made.

    Axes of one name are equal within a call.
    """
    if typechecker is None or function == "context":  # not put there by the hook
        return AS_JAXTYPING(function, typechecker=typechecker)
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(function):
        if is_dataclass(function) and not hasattr(function.__init__, "is_checked"):
            function.__init__ = checked(function.__init__, typechecker=typechecker)
            function.__init__.is_checked = True
        return function
    annotations = getattr(function, "__annotations__", {}).values()
    # the body of a generator runs between the calls of others; what is quoted may stand for what is no type
    if inspect.isgeneratorfunction(function) or any(isinstance(one, str) for one in annotations):
        return AS_JAXTYPING(function, typechecker=typechecker)
    checks: Callable[..., Any] | None = None

    @functools.wraps(function)
    def wrapper(*args: Any, **settings: Any) -> Any:
        __tracebackhide__ = True
        nonlocal checks
        if torch.compiler.is_compiling():  # what is traced has no shapes yet, and the checker cannot be traced
            return function(*args, **settings)
        calls = _checked.get(function, 0)
        if calls >= MOST:
            return function(*args, **settings)
        if checks is None:  # of five thousand functions, most are never called in one process
            checks = checking(function, typechecker)
        _checked[function] = calls + 1
        return checks(*args, **settings)

    return wrapper


def checking(function: Callable[..., Any], typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function with its checks of types, and of shapes where an annotation has any."""
    types: Callable[..., Any] = typechecker(function)
    if not any(map(speaks_of_shapes, function.__annotations__.values())):
        return types

    def checks(*args: Any, **settings: Any) -> Any:
        __tracebackhide__ = True
        with AS_JAXTYPING("context"):
            return types(*args, **settings)

    return checks


def speaks_of_shapes(annotation: object) -> bool:
    """Whether an annotation names axes, itself or in its parts."""
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else get_args(annotation)  # a list: arguments of a Callable
    return any(map(speaks_of_shapes, parts))
