import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from vidlab.errors import UserError
from vidlab.lab.tracking import store
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.sqlite_store import inspect, make_ready


def database(path: Path, *statements: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return path


def rows(path: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_start_that_was_killed_while_mlflow_made_its_tables(tmp_path, caplog):
    """As MLflow leaves it: some tables, no experiment; and the unfinished file of a start of our own."""
    path = database(tmp_path / "mlflow.db", "create table webhooks (webhook_id varchar)",
                    "create table experiments (experiment_id integer)", "create table alembic_version (version_num)",
                    "insert into alembic_version values ('867495a8f9d4')")  # fmt: skip
    (tmp_path / ".mlflow.db.1.new").write_bytes(b"half")
    experiment = store.with_experiment_ready(f"sqlite:///{path}", "tests")
    assert store.open_client(f"sqlite:///{path}").create_run(experiment).info.status == "RUNNING"
    assert sorted(file.name for file in tmp_path.glob("*mlflow.db*")) == ["mlflow.db", "mlflow.db.lock",
                                                                         "mlflow.db.unfinished"]  # fmt: skip
    assert rows(tmp_path / "mlflow.db.unfinished", "select * from alembic_version") == [("867495a8f9d4",)]
    assert "left half made by a start that was interrupted" in caplog.text


def test_an_interrupt_while_the_tables_are_made_leaves_nothing(tmp_path, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def interrupted(self, uri, root):
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(SqlAlchemyStore, "__init__", interrupted)
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        make_ready(tmp_path / "mlflow.db")
    assert list(tmp_path.glob("**/*.db*")) == [] and list((tmp_path / "cache" / "mlflow").iterdir()) == []


def test_the_tables_are_made_once_for_all_folders(tmp_path, monkeypatch):
    """A database made from the cached one is as MLflow makes it there, but for its times."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    make_ready(tmp_path / "a" / "mlflow.db")
    (cached,) = (tmp_path / "cache" / "mlflow").iterdir()
    written = cached.stat().st_mtime_ns
    (tmp_path / "b").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "__init__", None)  # the second asks MLflow for nothing
        make_ready(tmp_path / "b" / "mlflow.db")
    assert cached.stat().st_mtime_ns == written
    (tmp_path / "plain").mkdir()
    SqlAlchemyStore(f"sqlite:///{tmp_path / 'plain' / 'mlflow.db'}", str(tmp_path / "b" / "mlruns")).engine.dispose()
    columns = "experiment_id, name, artifact_location, lifecycle_stage"
    # MLflow writes the constraints of a table in no fixed order
    tables = "select m.name, p.name, p.type from sqlite_master m, pragma_table_info(m.name) p order by 1, 2"
    ours, theirs = tmp_path / "b" / "mlflow.db", tmp_path / "plain" / "mlflow.db"
    for query in (f"select {columns} from experiments", tables, "select * from alembic_version"):
        assert rows(ours, query) == rows(theirs, query) != []
    (made,) = rows(ours, "select creation_time from experiments")[0]
    assert abs(made - rows(theirs, "select creation_time from experiments")[0][0]) < 600_000

    cached.write_bytes(cached.read_bytes()[:5000])  # a damaged one is made again
    (tmp_path / "c").mkdir()
    make_ready(tmp_path / "c" / "mlflow.db")
    assert rows(tmp_path / "c" / "mlflow.db", "select name from experiments") == [("Default",)]


@pytest.mark.parametrize(
    "statements",
    [
        ["create table recipes (name)"],  # somebody's own
        ["create table experiments (name, artifact_location)", "insert into experiments values ('a', 'b')"],
        # an upgrade that was interrupted
        [
            "create table _alembic_tmp_runs (name)",
            "insert into _alembic_tmp_runs values ('a')",
            "create table tags (a)",
        ],
    ],
)
def test_what_holds_something_is_never_moved(tmp_path, statements):
    assert not inspect(database(tmp_path / "mlflow.db", *statements)).unfinished


def test_an_unfinished_one_beside_another(tmp_path, monkeypatch):
    from vidlab.lab.tracking import sqlite_store

    monkeypatch.setattr(sqlite_store, "_make", lambda path: path.write_bytes(b""))
    for expected in ("mlflow.db.unfinished", "mlflow.db.unfinished-1"):
        path = database(tmp_path / "mlflow.db", "create table runs (name)")
        make_ready(path)
        assert (tmp_path / expected).is_file() and path.stat().st_size == 0


def test_a_damaged_database_is_named_at_once(tmp_path, migrated):
    path = tmp_path / "mlflow.db"
    path.write_bytes(migrated.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"the MLflow database .* cannot be read"):
        store.with_experiment_ready(f"sqlite:///{path}", "tests")


def test_a_full_disk_at_the_start_is_one_sentence(tmp_path, monkeypatch):
    from vidlab.lab.tracking import sqlite_store

    def full(path):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite_store, "_make", full)
    with pytest.raises(UserError, match=r"cannot be used \(OperationalError: database or disk is full\)\. Free disk"):
        store.with_experiment_ready(f"sqlite:///{tmp_path}/mlflow.db", "tests")


def lab(folder: Path, migrated: Path) -> str:
    """A lab with one run that has a file; returns the run's id."""
    (folder / "runs" / "one").mkdir(parents=True)
    shutil.copy(migrated, folder / "mlflow.db")
    logger = MLflowLogger(f"sqlite:///{folder}/mlflow.db", "a b", system_metrics=False, folder=folder / "runs" / "one")
    logger.start()
    logger.log_config("seed: 0")
    logger.close("success")
    assert logger.run_id is not None
    return logger.run_id


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_files_lie_beside_the_database_wherever_its_folder_goes(tmp_path, migrated, way):
    old, new = tmp_path / "old", tmp_path / "new"
    run_id = lab(old, migrated)
    before = sorted(old.rglob("*"))
    (shutil.move if way == "moved" else shutil.copytree)(old, new)
    uri = f"sqlite:///{new}/mlflow.db"
    found = store.find_run(uri, run_id, "run")  # the former run is whole
    assert found.data.tags["vidlab.run_folder"] == str(new / "runs" / "one")
    assert Path(found.info.artifact_uri).is_relative_to(new)
    assert (Path(found.info.artifact_uri) / "config" / "config.yaml").read_text() == "seed: 0"
    logger = MLflowLogger(uri, "a b", system_metrics=False, folder=new / "runs" / "one")
    logger.start()
    logger.log_config("seed: 1")
    logger.close("success")
    (experiment,) = [e for e in logger.experiment.search_experiments() if e.name == "a b"]
    assert experiment.artifact_location == str(new / "mlruns" / "a_b")
    assert (new / "mlruns" / "a_b" / logger.run_id / "artifacts" / "config" / "config.yaml").is_file()
    logger.close("success")
    assert sorted(old.rglob("*")) == ([] if way == "moved" else before)


def test_files_that_were_wanted_elsewhere_stay_there(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    elsewhere = tmp_path / "disk" / "mlruns" / "tests"
    elsewhere.mkdir(parents=True)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    number = store.with_experiment_ready(uri, "tests", str(elsewhere))
    assert store.with_experiment_ready(uri, "tests") == number
    assert store.open_client(uri).get_experiment(number).artifact_location == str(elsewhere)


@pytest.mark.parametrize("store_is", ["deleted", "another"])
def test_a_run_whose_store_was_deleted_begins_a_new_one(tmp_path, migrated, store_is, caplog):
    if store_is == "another":
        shutil.copy(migrated, tmp_path / "mlflow.db")
    with caplog.at_level(logging.WARNING):
        assert store.run_to_continue(f"sqlite:///{tmp_path}/mlflow.db", "0" * 32) is None
    assert "a new MLflow run goes on from the checkpoint" in caplog.text and "run_id" not in caplog.text
    assert store.run_to_continue(None, "kept by a logger of one's own") == "kept by a logger of one's own"


def test_two_processes_that_make_one_database_at_once(tmp_path, monkeypatch):
    """One waits for the other, and makes nothing."""
    from vidlab.lab.tracking import sqlite_store

    made = tmp_path / "made"

    def slow(path):
        with made.open("a") as file:
            file.write(f"{os.getpid()}\n")
        database(
            path, "create table experiments (name, artifact_location)", "insert into experiments values ('a', 'b')"
        )

    monkeypatch.setattr(sqlite_store, "_make", slow)
    monkeypatch.setattr(store, "_experiment_id", lambda *_: "1")
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                store.with_experiment_ready(f"sqlite:///{tmp_path}/mlflow.db", "tests")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(made.read_text().splitlines()) == 1
