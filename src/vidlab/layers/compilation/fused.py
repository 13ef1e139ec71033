"""Small functions of tokens that run as one kernel each on a GPU, whether or not the model around them is compiled."""

from collections.abc import Callable
from functools import cache, update_wrapper
from importlib.util import find_spec
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Fused(Generic[Arguments, Result]):
    """A function of elementwise operations and reductions over channels, compiled where that saves memory traffic.

    One by one its operations would each read and write the whole sequence, some in float32. On a CUDA GPU where Triton
    is installed the function is compiled at its first call, forward and backward, once for any batch and length. On a
    CPU, and within a function that is being compiled, it runs as it is written.

    Args:
        function: of tensors; may compute in float32 inside and returns tensors of the dtype of its first argument.

    Attributes:
        function: the function.
    """

    def __init__(self, function: Callable[Arguments, Result]) -> None:
        self.function = function
        self._compiled: Callable[Arguments, Result] | None = None
        update_wrapper(self, function)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The function."""
        if torch.compiler.is_compiling():
            return self.function(*args, **kwargs)
        if torch._C._is_torch_function_mode_enabled():  # such as one that counts
            found: Result = handle_torch_function(self._run, _tensors(args), *args, **kwargs)
            return found
        return self._run(*args, **kwargs)

    def _run(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not (_first(args).is_cuda and has_triton()) or _is_fake(_first(args)):
            return self.function(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(self.function)
        return self._compiled(*args, **kwargs)


def fused(function: Callable[Arguments, Result]) -> Fused[Arguments, Result]:
    """``Fused`` as a decorator."""
    return Fused(function)


@cache
def has_triton() -> bool:
    """Whether Inductor can write kernels for this machine's GPU, which needs the package triton."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability() >= (7, 0)


def _first(args: Any) -> Tensor:
    first: Tensor = args[0]
    return first


def _tensors(args: Any) -> list[Tensor]:
    return [one for one in args if isinstance(one, Tensor)]


def _is_fake(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter
