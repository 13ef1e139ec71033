"""Every reader of files that come from outside."""

from ..target import Target
from . import annotations, broken, caches, checkpoints, media, models, records, sets, weights

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (media, sets, annotations, caches, checkpoints, weights, records, models)
    for target in module.TARGETS
}
# Readers with known faults, by which the harness itself is tested.
BROKEN: dict[str, Target] = {target.name: target for target in broken.TARGETS}
