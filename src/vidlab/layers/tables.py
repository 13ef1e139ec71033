"""Constant tables, such as positions, built once for each shape."""

from collections.abc import Callable

import torch
from torch import Tensor

# Shapes of a run are few: its own, that of images, those of buckets.
KEPT = 64


class Tables:
    """Remembers constant tensors of one network: on a small model the dozens of operations that build one show.

    Under ``torch.compile``, on the meta device and with fake tensors, where building costs nothing, tables are built
    anew. The oldest goes when there are over ``kept``. A copy of the network starts without any.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._built: dict[tuple[object, ...], Tensor] = {}

    def get(self, build: Callable[..., Tensor], *settings: object, device: torch.device) -> Tensor:
        """``build(*settings, device=device)``.

        Args:
            build: a function of its arguments alone.
            settings: hashable.
            device: where the table is.
        """
        if torch.compiler.is_compiling():
            return build(*settings, device=device)
        key = (build, *settings, device)
        if key in self._built:
            return self._built[key]
        # a table that is first built in validation serves training too, which needs an ordinary tensor
        with torch.inference_mode(False), torch.no_grad():
            table = build(*settings, device=device)
        if type(table) is not Tensor or table.is_meta:
            return table
        if len(self._built) >= self.kept:
            del self._built[next(iter(self._built))]
        self._built[key] = table
        return table

    def __getstate__(self) -> dict[str, object]:
        return {"kept": self.kept, "_built": {}}
