import contextlib
import multiprocessing
import os
import signal
import socket
import time

import pytest
from lightning.pytorch.utilities import rank_zero_only

from vidlab.errors import UserError
from vidlab.lab.runs.run_lock import locked, refuse_locked

fork = multiprocessing.get_context("fork")


def hold(folder, ready) -> None:
    """Take the lock, make a process as for loading data, tell its number, and go on until killed."""
    with locked(folder):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        ready.send(child)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder, and has a child."""
    here, there = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path, there), daemon=True)
    process.start()
    assert here.poll(30)
    child = here.recv()
    yield process
    for pid in (process.pid, child):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.join()


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path, holder):
    told = rf"this run is being trained by process {holder.pid} on {socket.gethostname()} since \d{{4}}-.* UTC\. Wait"
    with pytest.raises(UserError, match=told), locked(tmp_path):
        pass


def test_a_look_takes_nothing_and_makes_no_file(tmp_path, holder):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"by process {holder.pid} on"):
        refuse_locked(tmp_path)
    refuse_locked(tmp_path / "elsewhere")
    assert sorted(tmp_path.rglob("*")) == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    refuse_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_crash_releases_it_though_its_loading_processes_live_on(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()
    assert (tmp_path / "run.lock").read_text() == ""


def test_other_ranks_of_the_run_share_it(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with locked(tmp_path):
        pass
