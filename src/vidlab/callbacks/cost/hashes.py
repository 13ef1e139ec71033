"""Short hashes that say of two runs that they saw the same clips in the same order, and the same noise.

They are functions of the data's plan and of the keys of random numbers, so that nothing has to be read for them.
"""

import json
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from lightning.pytorch import LightningDataModule

from vidlab.data.module import ClipDataModule
from vidlab.training.module import ClipModule

DIGITS = 12


def data_order(data: ClipDataModule, world_size: int, accumulate: int) -> str:
    """Hex digits that two runs share when their steps are of the same clips, in the same order, cut in the same way.

    A run that is shorter saw the first of them. How many processes share a step, and in how many batches, is left out
    as far as its clips do not depend on it.

    Args:
        data: of the run; its index is read.
        world_size: processes.
        accumulate: batches to an optimizer step.
    """
    history = data.history(world_size)
    segments = [(one.first, one.batch_size * one.world_size * accumulate, one.tokens_per_batch)
                for one in history.segments]  # fmt: skip
    rule = data.bucketing.recorded
    sharing = rule and [world_size, accumulate]  # buckets are cut into batches by them
    view = asdict(data.view) | {"views": data.views}
    return _hash([data.data.hash, view, data.seed, history.epoch, segments, rule, sharing])


def noise(module: ClipModule, data: ClipDataModule, order: str, device: str) -> str:
    """Hex digits that two runs share when the clips of their steps get the same noise.

    Noise follows from the seed, a clip's key and visit, and the shape of its latents. Objectives of another process
    draw other noise, and so does another kind of device.

    Args:
        module: of the run.
        data: of the run.
        order: from ``data_order``.
        device: kind of device that makes the numbers, such as ``cpu``.
    """
    shapes = [module.clip_shape]
    if data.bucketing.max_tokens is not None:
        buckets = data.planned(data.world_size).assignment.buckets
        shapes = [(bucket.frames, bucket.height, bucket.width) for bucket in buckets]
    latents = [module.autoencoder.latent_shape(*shape) for shape in shapes]
    process = getattr(getattr(module, "objective", None), "process", type(module).__name__)
    return _hash([order, getattr(module, "seed", None), process, latents, device])


def shared_tags(module: ClipModule, data: LightningDataModule, world_size: int, accumulate: int, device: str) -> Any:
    """The tags of a run: ``vidlab.data_order`` and ``vidlab.noise``; none without a plan of the data."""
    if not isinstance(data, ClipDataModule):
        return {}
    order = data_order(data, world_size, accumulate)
    return {"vidlab.data_order": order, "vidlab.noise": noise(module, data, order, device)}


def _hash(what: Any) -> str:
    return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=DIGITS // 2).hexdigest()
