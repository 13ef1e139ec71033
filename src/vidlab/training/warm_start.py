"""Warm starts: a new model begins with trained weights of another, and every weight is accounted for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from vidlab.errors import UserError
from vidlab.files import write_json

Adapt = Callable[[str, Tensor], Tensor | None]


@dataclass(frozen=True)
class Source:
    """Trained weights by the name they have in the new model.

    Args:
        name: where they come from, for the report.
        weights: tensors by full parameter name.
        keys: shell-style patterns of the names that may be taken.
    """

    name: str
    weights: Mapping[str, Tensor]
    keys: Sequence[str] = ("*",)

    def get(self, name: str) -> Tensor | None:
        """The weight of a name, where it may be taken."""
        return self.weights.get(name) if _matches(name, self.keys) else None


@dataclass(frozen=True)
class WarmStartReport:
    """What became of every weight.

    Args:
        taken: weights as they were, by source.
        adapted: weights whose shape was changed, such as an inflated patch embedding.
        copied: weights that start as a copy of another, "target <- origin".
        fresh: weights left as drawn.
        unused: weights of a source that nothing took.
        notes: what the reader should know.
    """

    taken: Mapping[str, tuple[str, ...]]
    adapted: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """A few lines for the log; the full lists are in the file."""
        lines = [f"{len(names)} weights taken from {source}" for source, names in self.taken.items()]
        for word in ("adapted", "copied", "fresh", "unused"):
            names = getattr(self, word)
            if names:
                more = f", and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"{len(names)} {word}: {', '.join(names[:3])}{more}")
        return "\n  ".join(["inherited weights:", *lines, *self.notes])

    def write(self, path: Path) -> None:
        """All lists as JSON."""
        write_json(path, asdict(self), indent=1)


@torch.no_grad()
def inherit(
    module: nn.Module,
    sources: Sequence[Source],
    fresh: Sequence[str] = (),
    copies: Mapping[str, str] | None = None,
    adapt: Adapt | None = None,
    names: Collection[str] | None = None,
) -> WarmStartReport:
    """Fill parameters of a module from sources; nothing is changed unless all can be.

    Args:
        module: the new model.
        sources: asked in order; the first that has a name gives it.
        fresh: patterns of names that may keep their drawn values where no source has them.
        copies: prefix of names no source has, to the prefix of those they start as a copy of.
        names: of the parameters to fill; None is those that are trained.
        adapt: given (name, weight) of another shape, the weight in the new shape, or None.

    Raises:
        UserError: a parameter that no source has and ``fresh`` does not name, or one of another shape.
    """
    wanted = {n: p for n, p in module.named_parameters() if (p.requires_grad if names is None else n in names)}
    plan = {n: _find(n, p, sources, copies or {}, adapt) for n, p in wanted.items()}
    missing = [n for n, found in plan.items() if found is None and not _matches(n, fresh)]
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"init: {len(missing)} of {len(plan)} weights are in none of {[s.name for s in sources]}: "
            f"{', '.join(missing[:5])}{more}. Name them in init.fresh to let them start as drawn."
        )
    parameters = dict(module.named_parameters())
    for name, found in plan.items():
        if found is not None:
            parameters[name].copy_(found.weight)
    return _report(plan, sources)


@dataclass(frozen=True)
class _Found:
    weight: Tensor
    source: str
    origin: str
    adapted: bool


def _find(
    name: str, own: Tensor, sources: Sequence[Source], copies: Mapping[str, str], adapt: Adapt | None
) -> _Found | None:
    names = [name, *(origin + name[len(prefix) :] for prefix, origin in copies.items() if name.startswith(prefix))]
    for origin in names:
        for source in sources:
            weight = source.get(origin)
            if weight is None:
                continue
            if weight.shape == own.shape:
                return _Found(weight, source.name, origin, adapted=False)
            changed = adapt(name, weight) if adapt else None
            if changed is None or changed.shape != own.shape:
                raise UserError(
                    f"init: {name} has shape {tuple(own.shape)} here and {tuple(weight.shape)} in {source.name}, and "
                    "cannot be adapted. Use the sizes of the source, or leave the weight out of init.keys."
                )
            return _Found(changed, source.name, origin, adapted=True)
    return None


def _report(plan: Mapping[str, _Found | None], sources: Sequence[Source]) -> WarmStartReport:
    found = {name: item for name, item in plan.items() if item is not None}
    straight = {name: item for name, item in found.items() if item.origin == name and not item.adapted}
    used = {(item.source, item.origin) for item in found.values()}
    return WarmStartReport(
        taken={s.name: tuple(n for n, item in straight.items() if item.source == s.name) for s in sources},
        adapted=tuple(name for name, item in found.items() if item.adapted),
        copied=tuple(f"{name} <- {item.origin}" for name, item in found.items() if item.origin != name),
        fresh=tuple(name for name, item in plan.items() if item is None),
        unused=tuple(f"{s.name}: {n}" for s in sources for n in s.weights if (s.name, n) not in used),
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
