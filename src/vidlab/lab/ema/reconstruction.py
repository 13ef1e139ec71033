"""The averaged weights of a run at a length that it did not keep itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlab.callbacks.post_hoc_ema.profiles import Snapshot, combination, exponent_of
from vidlab.callbacks.post_hoc_ema.snapshots import combined, stored_in
from vidlab.errors import UserError

FOLDER = "ema"


def average_of(folder: Path, length: float, step: int, key: str = "length") -> dict[str, Tensor]:
    """The average of a run, by least squares from its snapshots up to a step.

    Args:
        folder: of the run.
        length: sigma_rel.
        step: at which the average ends.
        key: of the length, for messages.

    Raises:
        UserError: a length that cannot be, or a run without snapshots up to that step.
    """
    exponent_of(length, key)
    found = stored_in(folder / FOLDER)
    used = [one for one in found if one.step <= step]
    if not used:
        kept = f"; it has them of steps {', '.join(sorted({str(one.step) for one in found}))}" if found else ""
        raise UserError(
            f"{key}={length}: {folder / FOLDER} holds no snapshot up to step {step}{kept}. Train with "
            "callbacks=[default,post_hoc_ema]."
        )
    factors = combination(used, Snapshot(length, step))
    return combined({found[one]: factor for one, factor in zip(used, factors, strict=True)})


def with_average(
    state: Mapping[str, Any], folder: Path, length: float, weights: str, checkpoint: Path
) -> dict[str, Any]:
    """A checkpoint with another average in place of its own, at the step of its last snapshot.

    Args:
        state: the checkpoint.
        folder: of its run.
        length: sigma_rel.
        weights: what is asked for: averaged ones, ``ema``.
        checkpoint: its file, for messages.

    Raises:
        UserError: as ``average_of``; other weights asked for; an export; snapshots of another model.
    """
    if weights != "ema" or state.get("averaged"):
        raise UserError(
            f"ema_length={length}: an average is asked for, with weights=ema, of a run and not of an export."
        )
    steps = int(state.get("global_step", 0))
    stored = [one.step for one in stored_in(folder / FOLDER) if one.step <= steps]
    found = average_of(folder, length, max(stored, default=steps), "ema_length")
    shapes = {name: weight.shape for name, weight in found.items()}
    if any(name not in state["state_dict"] or state["state_dict"][name].shape != one for name, one in shapes.items()):
        raise UserError(f"{folder / FOLDER} holds averages of another model than {checkpoint}.")
    return {**state, "ema": found}
