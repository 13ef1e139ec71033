import json
import multiprocessing
import os
import shutil
import time
from dataclasses import replace

import pytest

from vidlab.lab.tracking import heartbeat, store
from vidlab.lab.tracking.abandoned import how_to_resume, is_abandoned, mark_abandoned
from vidlab.lab.tracking.heartbeat import SILENT_SECONDS
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.process_identity import ProcessIdentity, this_process

fork = multiprocessing.get_context("fork")


def ended_process() -> ProcessIdentity:
    here, there = fork.Pipe()
    process = fork.Process(target=lambda: there.send(this_process()))
    process.start()
    found = here.recv()
    process.join()
    return found


def test_a_process_is_known_by_its_number_and_its_start():
    own = this_process()
    assert own.alive() is True and own.pid == os.getpid() and ProcessIdentity.of_text(own.text()) == own
    assert ended_process().alive() is False
    assert replace(own, started=own.started - 100).alive() is False, "the number was given to another since"
    assert replace(own, place="elsewhere").alive() is None


def test_one_that_waits_to_be_looked_at_by_its_parent_is_gone():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    identity = replace(this_process(), pid=pid)
    while identity.alive():
        time.sleep(0.001)
    os.waitpid(pid, 0)
    assert not identity.alive()


WRONG = json.dumps({"pid": "x", "host": "", "place": "", "started": 0})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', WRONG, "[" * 200_000])
def test_what_is_no_identity(text):
    assert ProcessIdentity.of_text(text) is None


def tags(process: ProcessIdentity, silent: float = 0.0) -> dict[str, str]:
    return {heartbeat.PROCESS: process.text(), heartbeat.BEAT: str(int((time.time() - silent) * 1000))}


def test_a_run_is_given_up_when_its_process_is_gone_or_silent_on_another_machine():
    own, gone = this_process(), ended_process()
    assert not is_abandoned(tags(own, silent=10 * SILENT_SECONDS)), "suspended, or at a long step"
    assert is_abandoned(tags(gone))
    elsewhere = replace(gone, place="another boot")
    assert not is_abandoned(tags(elsewhere, silent=SILENT_SECONDS - 60))
    assert is_abandoned(tags(elsewhere, silent=SILENT_SECONDS + 60))
    assert not is_abandoned({heartbeat.PROCESS: elsewhere.text()}) and not is_abandoned({})


def test_the_next_command_marks_what_was_given_up_and_going_on_takes_the_marks_off(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment, client = store.with_experiment_ready(uri, "lab"), store.open_client(uri)
    folder = tmp_path / "runs" / "lab" / "one"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    own = {"vidlab.run_folder": str(folder), "vidlab.command": "python train.py model=2p1d ckpt_path=runs/other"}
    lost = client.create_run(experiment, tags=tags(ended_process(), silent=90) | own).info.run_id
    alive = client.create_run(experiment, tags=tags(this_process()) | own).info.run_id
    assert store.with_experiment_ready(uri, "lab") == experiment
    run = client.get_run(lost)
    assert (
        run.info.status == "FAILED"
        and run.data.tags["vidlab.resume"] == f"python train.py model=2p1d ckpt_path={folder}"
    )
    assert run.info.end_time == int(run.data.tags[heartbeat.BEAT]) and "last seen" in run.data.tags["vidlab.ended"]
    assert client.get_run(alive).info.status == "RUNNING" and mark_abandoned(client, experiment) == []
    logger = MLflowLogger(uri, "lab", run_id=lost, system_metrics=False)
    logger.start()
    again = client.get_run(lost)
    assert again.info.status == "RUNNING" and not {"vidlab.resume", "vidlab.ended"} & again.data.tags.keys()
    assert heartbeat.process_of(again.data.tags) == this_process()
    logger.close("success")


def test_how_a_run_goes_on(tmp_path):
    assert how_to_resume({"vidlab.sweep": "2026-11-27_00-00-00"}) == "python train.py resume_sweep=2026-11-27_00-00-00"
    anew = {"vidlab.run_folder": str(tmp_path), "vidlab.command": "python train.py 'data.path=a b'"}
    assert how_to_resume(anew) == "python train.py data.path='a b'", "without a checkpoint, from the start"
    assert how_to_resume({"vidlab.command": "rm -rf /"}) == "run the command again"


def test_a_new_run_names_its_process_from_its_first_moment(tmp_path, migrated, monkeypatch):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    logger = MLflowLogger(f"sqlite:///{tmp_path / 'mlflow.db'}", "lab", tags={"a": "b"}, system_metrics=False)
    monkeypatch.setattr(logger, "set_tags", lambda tags: None)  # which come after that moment
    logger.start()
    found = store.open_client(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(logger.run_id).data.tags
    logger.close("success")
    assert found["a"] == "b" and heartbeat.process_of(found) == this_process() and heartbeat.BEAT in found


def test_a_heartbeat_touches_its_file_and_tells_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "FILE_SECONDS", 0.001)
    monkeypatch.setattr(heartbeat, "STORE_SECONDS", 0.0)
    told = []

    def tell(found: dict[str, str]) -> None:
        told.append(found)
        raise RuntimeError("a store that is down")

    pulse = heartbeat.Heartbeat(tmp_path, tell)
    pulse.stop()
    pulse.start()
    assert (tmp_path / heartbeat.FILE).exists()
    while len(told) < 2:
        time.sleep(0.001)
    pulse.stop()
    assert not (tmp_path / heartbeat.FILE).exists() and heartbeat.BEAT in told[0]
