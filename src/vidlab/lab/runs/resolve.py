"""The one resolver of runs: ``last``, a run folder, a checkpoint file or an MLflow run id.

Run folders are ``<runs root>/<experiment>/<time>/``, in sweeps ``<runs root>/<experiment>/<time>/<job>/``,
each with ``run.json`` and ``checkpoints/last.ckpt``, ``checkpoints/best.ckpt``.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vidlab.errors import UserError
from vidlab.files import write_json
from vidlab.redaction import redact

Which = Literal["last", "best"]
RECORD = "run.json"
EXPORT = "vidlab.json"  # what makes a folder an exported one


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about itself in ``run.json``.

    Args:
        mlflow_run_id: its MLflow run.
        experiment: its experiment.
        written: grows with every start, resume and checkpoint of any run: nanoseconds since 1970, more where a clock
            was set back. File times do not count, which copies and backups lose. None in runs of earlier versions.
        place: the last two parts of the folder's path as it was written; a copy lies at another.
    """

    mlflow_run_id: str | None
    experiment: str
    written: int | None = None
    place: str = ""


@dataclass(frozen=True)
class Run:
    """A run that was found: its folder, the checkpoint asked for, and its MLflow run where it has one."""

    folder: Path
    checkpoint: Path
    mlflow_run_id: str | None


def resolve_run(
    reference: str,
    runs_root: Path,
    experiment: str,
    tracking_uri: str | None = None,
    which: Which = "last",
    key: str = "ckpt_path",
    exports: bool = False,
) -> Run:
    """Find a run.

    Args:
        reference: ``last`` (of the runs of ``experiment`` with a checkpoint, that which was written last), a run
            folder, a ``.ckpt`` file, or an MLflow run id of 32 hexadecimal digits.
        runs_root: where run folders are kept.
        experiment: whose runs ``last`` looks through.
        tracking_uri: the MLflow store in which run ids are looked up; None refuses them.
        which: the checkpoint wanted from a folder: ``last.ckpt`` or ``best.ckpt``.
        key: the configuration key that held ``reference``, for messages.
        exports: whether an exported folder will do, its ``vidlab.json`` being the checkpoint.

    Raises:
        UserError: nothing was found; says where it looked and what exists.
    """
    reference = str(reference).strip()
    path = Path(reference).expanduser()
    manifest = path if path.name == EXPORT else path / EXPORT
    if manifest.is_file():
        return _from_export(manifest.resolve(), key, exports)
    if reference == "last":
        return _newest(Path(runs_root), experiment, which, key)
    if path.is_file():
        return _from_file(path.resolve(), key)
    if path.is_dir():
        return _from_folder(path.resolve(), which, key)
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        return _from_mlflow(reference, tracking_uri, which, key)
    raise UserError(
        f"{key}={reference}: no such run folder or checkpoint file, and not an MLflow run id (32 hexadecimal "
        f"digits). {_what_exists(Path(runs_root))}"
    )


def _newest(runs_root: Path, experiment: str, which: Which, key: str) -> Run:
    folder = runs_root / experiment
    found = _with_checkpoint(folder)
    if not found:
        raise UserError(
            f"{key}=last: no run of experiment {experiment!r} has a checkpoint yet (looked for "
            f"{folder}/*/checkpoints/last.ckpt). {_what_exists(runs_root)}"
        )
    return _from_folder(found[0].resolve(), which, key)


def _with_checkpoint(folder: Path) -> list[Path]:
    """Run folders below ``folder`` with a last.ckpt, newest first; a copy comes after what it was copied from."""
    files = [*folder.glob("*/checkpoints/last.ckpt"), *folder.glob("*/*/checkpoints/last.ckpt")]
    ages = {file.parents[1]: _age(file.parents[1], file) for file in files}
    return sorted(ages, key=lambda run: (*ages[run], str(run)), reverse=True)


def _age(folder: Path, checkpoint: Path) -> tuple[int, bool]:
    """When a run was last written, and whether there or elsewhere."""
    try:
        record = read_run_record(folder)
    except UserError:  # said when this run is the one that is asked for
        record = None
    if record is None or record.written is None:
        return checkpoint.stat().st_mtime_ns, False
    return record.written, record.place == _place(folder)


def _place(folder: Path) -> str:
    return "/".join(folder.absolute().parts[-2:])


def _what_exists(runs_root: Path) -> str:
    experiments = sorted(p for p in runs_root.iterdir() if p.is_dir()) if runs_root.is_dir() else []
    newest = {folder.name: _with_checkpoint(folder) for folder in experiments}
    lines = [f"{name}: newest {runs[0]}" for name, runs in newest.items() if runs]
    if not lines:
        return f"There is no run with a checkpoint in {runs_root.resolve()}."
    more = f", and {len(lines) - 5} more experiments" if len(lines) > 5 else ""
    return f"Runs with a checkpoint: {'; '.join(lines[:5])}{more}."


def _from_file(path: Path, key: str) -> Run:
    if path.suffix != ".ckpt":
        raise UserError(f"{key}={path}: a checkpoint file ends in .ckpt; name a .ckpt file or the run folder.")
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    return Run(folder, path, _run_id(folder))


def _from_folder(folder: Path, which: Which, key: str) -> Run:
    if folder.name == "checkpoints":
        folder = folder.parent
    checkpoint = folder / "checkpoints" / f"{which}.ckpt"
    if checkpoint.is_file():
        return Run(folder, checkpoint, _run_id(folder))
    jobs = sorted(file.parents[1] for file in folder.glob(f"*/checkpoints/{which}.ckpt"))
    if jobs:
        names = ", ".join(str(job) for job in jobs[:5]) + (", ..." if len(jobs) > 5 else "")
        raise UserError(f"{key}={folder}: this folder holds {len(jobs)} runs, choose one: {names}.")
    present = sorted(file.name for file in folder.glob("checkpoints/*.ckpt"))
    has = f"it has {', '.join(present)}; name that file" if present else "it has no checkpoints yet"
    raise UserError(f"{key}={folder}: no checkpoints/{which}.ckpt in this folder; {has}.")


def _from_export(manifest: Path, key: str, taken: bool) -> Run:
    if not taken:
        raise UserError(
            f"{key}={manifest.parent} is an exported folder, from which no run goes on. It is read by generate.py "
            f"checkpoint={manifest.parent}, evaluate.py run=..., and train.py init=from_run init.run=..."
        )
    return Run(manifest.parent, manifest, None)


def _from_mlflow(run_id: str, tracking_uri: str | None, which: Which, key: str) -> Run:
    if tracking_uri is None:
        raise UserError(f"{key}={run_id}: looks like an MLflow run id, but logger=none has no store to look it up in.")
    from vidlab.lab.tracking.store import absolute_uri, find_run

    tags: Mapping[str, str] = find_run(tracking_uri, run_id, key).data.tags
    folder = Path(tags.get("vidlab.run_folder", ""))
    if "vidlab.run_folder" not in tags or not folder.is_dir():
        where = tags.get("vidlab.run_folder", "not recorded (no tag vidlab.run_folder)")
        raise UserError(
            f"{key}={run_id}: the MLflow run is known to {redact(absolute_uri(tracking_uri))}, but its run folder is "
            f"missing: {where}. Copy the folder to this machine and name it instead."
        )
    found = _from_folder(folder, which, key)
    return Run(found.folder, found.checkpoint, run_id)


def _run_id(folder: Path) -> str | None:
    record = read_run_record(folder)
    return record.mlflow_run_id if record else None


def write_run_record(folder: Path, mlflow_run_id: str | None, experiment: str, after: int = 0) -> Path:
    """Write ``run.json`` atomically, as written now, and return its path.

    Args:
        folder: of the run.
        mlflow_run_id: its MLflow run.
        experiment: its experiment.
        after: when the newest of the other runs was written, by ``newest_record``.
    """
    record = RunRecord(mlflow_run_id, experiment, max(time.time_ns(), after + 1), _place(Path(folder)))
    return write_json(Path(folder) / RECORD, asdict(record))


def newest_record(experiment: Path) -> int:
    """When the newest run below a folder was written; 0 where none says so."""
    found = 0
    for path in (*experiment.glob(f"*/{RECORD}"), *experiment.glob(f"*/*/{RECORD}")):
        try:
            record = read_run_record(path.parent)
        except UserError:
            continue
        found = max(found, record.written or 0) if record else found
    return found


def note_written(folder: Path) -> None:
    """Bring ``run.json`` up to date with a checkpoint; nothing where a folder has none."""
    record = read_run_record(folder)
    if record is not None:
        write_run_record(folder, record.mlflow_run_id, record.experiment, record.written or 0)


def read_run_record(folder: Path) -> RunRecord | None:
    """Read ``run.json``; None where a folder has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        written = content.get("written")
        run_id, experiment = content["mlflow_run_id"], content["experiment"]
        if not isinstance(run_id, str | None) or not isinstance(experiment, str):
            raise ValueError("an experiment is a text, and so is the id of its MLflow run")
        return RunRecord(
            run_id, experiment, None if written is None else int(written), str(content.get("place", ""))
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); delete it to go on.") from error
