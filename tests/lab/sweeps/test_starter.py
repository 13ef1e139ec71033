"""A command that another has started ends with it, even where that is killed."""

import os
import signal
import subprocess
import sys

import pytest

from vidlab.lab.sweeps.own_processes import STARTER, own_environment

CHILD = (
    "import os, signal, sys, time; from vidlab.lab.sweeps.own_processes import end_with_starter; "
    "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'ended\\n'), os._exit(3))); end_with_starter(); "
    "print('begun', flush=True); time.sleep(100)"
)
PARENT = (
    "import subprocess, sys; from vidlab.lab.sweeps.own_processes import own_environment; "
    "subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=own_environment()).wait()"
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")


def test_a_killed_command_ends_what_it_has_started():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
    parent.send_signal(signal.SIGKILL)
    assert parent.stdout.read() == "ended\n"  # to the end of the pipe, which the child holds


def test_a_command_whose_starter_is_gone_already_ends_at_once():
    environment = own_environment()
    assert environment[STARTER] == str(os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment | {STARTER: "1"}, stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "ended\n")
