import multiprocessing
import os
import signal
import time
from multiprocessing import get_context

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vidlab.data.dataset import ClipDataset
from vidlab.data.loader import BatchNumbers, ClipLoader
from vidlab.data.parallel import in_processes
from vidlab.data.workers import death_of_a_worker, outlive_signals, process_context


class Slow(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return torch.tensor(number)


def test_a_worker_loads_on_after_sigterm_and_ctrl_c():
    loader = DataLoader(Slow(), batch_size=None, num_workers=1, worker_init_fn=outlive_signals)
    assert [int(number) for number in loader] == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # as it is without
        list(DataLoader(Slow(), batch_size=None, num_workers=1))


def wait() -> None:
    outlive_signals(0)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(60)


def test_a_second_sigterm_ends_it():
    reached = []
    before = signal.signal(signal.SIGUSR1, lambda *_: reached.append(True))
    process = get_context("fork").Process(target=wait)
    process.start()
    while not reached:
        time.sleep(0.01)
    process.terminate()
    process.join(10)
    signal.signal(signal.SIGUSR1, before)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            "Process 12, which loads data, is kil",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "Process 7, 8, which loads data, exited u",
        ),
        (ConnectionResetError(104, "reset"), "A process that loads data ended. Most often memory ran out"),
    ],
)
def test_the_death_of_a_worker_is_told_in_one_way(error, begins):
    message = death_of_a_worker(error)
    assert message.startswith(begins) and message.endswith("resume with ckpt_path=last.")
    assert death_of_a_worker(RuntimeError("shapes differ")) is None


class Numbers(ClipDataset):
    def __init__(self):
        pass

    def __len__(self):
        return 4

    def __getitem__(self, number):
        return torch.tensor(number)


@pytest.fixture
def in_a_job_of_joblib(monkeypatch):
    """The default way of starting processes in a process of loky, which starts none but its own."""
    backend = pytest.importorskip("joblib.externals.loky.backend.context")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", backend.LokyContext())
    with pytest.raises(AttributeError, match="has no attribute 'env'"):
        multiprocessing.Process(target=print).start()


@pytest.mark.usefixtures("in_a_job_of_joblib")
def test_a_job_of_joblib_starts_processes():
    loader = ClipLoader(Numbers(), BatchNumbers(lambda: 0, 4), 1, lambda batch: batch)
    assert [int(number) for number in loader] == [0, 1, 2, 3]
    done = in_processes(abs, [-1, -2], "Counting", at_once=2, few=1)
    assert list(done) == [(-1, 1), (-2, 2)]


def test_the_way_that_was_chosen_is_kept(monkeypatch):
    for way in ("spawn", "fork"):
        context = multiprocessing.get_context(way)
        monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", context)
        assert process_context().get_start_method() == way
