"""Building what a file's configuration describes: within the size of the weights beside it, or one message."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vidlab.errors import UserError


@contextmanager
def rebuilding(checkpoint: Path) -> Iterator[None]:
    """Name the file where a configuration whose classes are known still cannot be built, for whatever reason.

    Each class refuses the settings it looks at. What is left are values that none of them expects, which raise wherever
    they are first used.

    Raises:
        UserError: those of the parts unchanged, and any other error as one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{checkpoint}: the model that its configuration describes cannot be rebuilt ({type(error).__name__}: "
            f"{reason}). The file is damaged, or of another version of vidlab."
        ) from error


@contextmanager
def no_larger_than(weights: Mapping[str, Any], checkpoint: Path) -> Iterator[None]:
    """Refuse a parameter too many or too large while modules are built, before its memory is filled.

    A depth of a billion would otherwise be built for days, and a width of a million fill the memory.

    Args:
        weights: what the parameters will be filled from, by name.
        checkpoint: the file that holds them, for messages.

    Raises:
        UserError: there are far more parameters than weights, or larger ones.
    """
    sizes = [value.numel() for value in weights.values() if isinstance(value, Tensor)]
    largest, left = max(sizes, default=0), 4 * len(sizes) + 16  # one that is replaced or shared counts again

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is None:
            return
        left -= 1
        if left < 0 or parameter.numel() > largest:
            raise UserError(f"{checkpoint}: its configuration describes a larger model than its weights are of.")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
