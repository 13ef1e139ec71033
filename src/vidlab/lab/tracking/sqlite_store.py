"""The SQLite database of an MLflow store: made whole or not at all, repaired where a start was interrupted, and moved
with its folder."""

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from vidlab.assets import cache_folder
from vidlab.errors import UserError
from vidlab.files import remove_leftovers, written_aside

log = logging.getLogger(__name__)

HEADER = b"SQLite format 3\0"
LOCK_SECONDS = 180.0  # creating a database takes MLflow seconds
# Rows of these are somebody's; an interrupted migration leaves them under their temporary name.
HOLDING = ("experiments", "runs", "_alembic_tmp_experiments", "_alembic_tmp_runs")
PLACES = ("vidlab.run_folder", "vidlab.checkpoints")  # tags that hold absolute paths


def artifact_folder(database: Path, experiment: str) -> Path:
    """Where an experiment keeps its files: ``mlruns/<experiment>`` beside the database."""
    return database.parent / "mlruns" / re.sub(r"[^\w.-]", "_", experiment)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the lock of a database; a process that is killed lets go of it.

    Raises:
        UserError: another process held it for minutes.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(f"{database}.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError(
            f"{database}.lock has been held by another process for {LOCK_SECONDS:.0f} s: it may hang while it makes "
            "the MLflow database. End it, or use logger=none."
        ) from None


def make_ready(database: Path) -> None:
    """Mend a database, or make it where there is none; call it ``locked``.

    MLflow makes its tables one by one and cannot go on from half of them. So they are made once, in a file of the
    cache, and a copy of it takes the name.

    Raises:
        UserError: the file is not an SQLite database, or is damaged.
        OSError: it cannot be written.
    """
    for leftover in database.parent.glob(f".{database.name}.*.new*"):  # of a process killed while it made one
        leftover.unlink()
    if database.exists():
        with database.open("rb+"):  # found here, a file without permission costs no minutes of retries in MLflow
            pass
        _mend(database, inspect(database))
    if not database.exists() or database.stat().st_size == 0:
        _make(database)


def repair(database: Path) -> None:
    """Do what ``make_ready`` does to a database that is there.

    Raises:
        UserError: the file is not an SQLite database, or is damaged.
    """
    if inspect(database).sound:  # the usual case needs neither a lock nor a folder that can be written
        return
    with locked(database):
        _mend(database, inspect(database))


@dataclass(frozen=True)
class Finding:
    """What is to be repaired: an ``unfinished`` database holds nothing; ``moved`` maps old folders of files to new."""

    unfinished: bool
    moved: dict[str, str]

    @property
    def sound(self) -> bool:
        """Whether nothing is to be done."""
        return not self.unfinished and not self.moved


def inspect(database: Path) -> Finding:
    """Look at a database; an empty file is as good as none.

    Raises:
        UserError: it is not an SQLite database, or is damaged.
    """
    with database.open("rb") as file:
        header = file.read(len(HEADER))
    if header and header != HEADER:
        raise UserError(f"logger.uri: {database} is not an sqlite database; choose another file.")
    if not header:
        return Finding(unfinished=False, moved={})
    try:
        with closing(_connect(database)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            if not any(_has_rows(connection, name) for name in tables & set(HOLDING)):
                return Finding(all(map(_is_of_mlflow, tables)), {})
            moved = _moved(database, connection) if "experiments" in tables else {}
            return Finding(unfinished=False, moved=moved)
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"logger.uri: the MLflow database {database} cannot be read ({error}). Put a copy in its place, or move it "
            "away: a new one is made, and checkpoints and run folders stay as they are."
        ) from error


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=20)


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f'select 1 from "{table}" limit 1').fetchone() is not None


def _is_of_mlflow(table: str) -> bool:
    import mlflow.store.db.utils  # which imports the models of all tables
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

    known = {*mlflow.store.db.utils.Base.metadata.tables, *InitialBase.metadata.tables, "alembic_version"}
    return table in known or table.startswith(("_alembic_tmp_", "sqlite_"))


def _moved(database: Path, connection: sqlite3.Connection) -> dict[str, str]:
    """Folders of files that lay beside the database, and do no more, since it was moved or copied."""
    moved = {}
    for name, location in connection.execute("select name, artifact_location from experiments"):
        old, new = Path(str(location).removeprefix("file://")), artifact_folder(database, str(name))
        beside_a_database = old.is_absolute() and old.parts[-2:] == new.parts[-2:]
        if beside_a_database and old != new and (new.exists() or not old.exists()):
            moved[str(location)] = str(new)
    return moved


def _mend(database: Path, finding: Finding) -> None:
    if finding.unfinished:
        aside = _free(database.with_name(f"{database.name}.unfinished"))
        database.rename(aside)
        log.warning(
            "%s was left half made by a start that was interrupted, and holds no runs: it is now %s, and a new one is "
            "made.",
            database, aside.name,
        )  # fmt: skip
    if finding.moved:
        _follow(database, finding.moved)


def _free(path: Path) -> Path:
    number = 0
    while (chosen := path.with_name(path.name + (f"-{number}" if number else ""))).exists():
        number += 1
    return chosen


def _follow(database: Path, moved: dict[str, str]) -> None:
    """Give experiments and runs the places where their files are now; MLflow has no call for it."""
    begin = "substr({0}, 1, length(:old)) = :old"
    with closing(_connect(database)) as connection, connection:  # one transaction
        for old, new in moved.items():
            names = {"old": old, "new": new}
            connection.execute("update experiments set artifact_location = :new where artifact_location = :old", names)
            connection.execute(
                "update runs set artifact_uri = :new || substr(artifact_uri, length(:old) + 1) where "
                + begin.format("artifact_uri"), {"old": f"{old}/", "new": f"{new}/"}
            )  # fmt: skip
        for old, new in {(str(Path(old).parents[1]), str(Path(new).parents[1])) for old, new in moved.items()}:
            names = {"old": f"{old.removeprefix('file:')}/", "new": f"{new}/"}
            for key in PLACES:
                connection.execute(
                    "update tags set value = :new || substr(value, length(:old) + 1) where key = :key and "
                    + begin.format("value"), {**names, "key": key}
                )  # fmt: skip
            log.warning("%s was moved from %s: MLflow now keeps and finds the files of its runs here.", database, old)


def _make(database: Path) -> None:
    aside = database.with_name(f".{database.name}.{os.getpid()}.new")
    try:
        shutil.copyfile(_empty_store(), aside)
        with closing(_connect(aside)) as connection, connection:
            connection.execute(
                "update experiments set artifact_location = ? || '/' || experiment_id, creation_time = ?, "
                "last_update_time = ?", (str(database.parent / "mlruns"), *2 * [int(time.time() * 1000)])
            )  # fmt: skip
        aside.replace(database)
    finally:
        _remove(aside)


def _empty_store() -> Path:
    """MLflow's database without runs, made once by each version of MLflow: its migrations take over a second."""
    path = cache_folder() / "mlflow" / f"empty-{version('mlflow')}.db"
    if path.is_file() and _whole(path):
        return path
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with written_aside(path) as aside:
        try:
            SqlAlchemyStore(f"sqlite:///{aside}", "mlruns").engine.dispose()
        except BaseException:
            _remove(aside)
            raise
    return path


def _whole(database: Path) -> bool:
    try:
        with closing(_connect(database)) as connection:
            found = connection.execute("pragma integrity_check").fetchall()
            return found == [("ok",)] and _has_rows(connection, "experiments")
    except sqlite3.DatabaseError:
        return False


def _remove(database: Path) -> None:
    with contextlib.suppress(OSError):
        database.unlink(missing_ok=True)
        database.with_name(f"{database.name}-journal").unlink(missing_ok=True)
