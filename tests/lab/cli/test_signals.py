import os
import signal

import pytest

from vidlab.lab.cli.signals import Terminated, held, terminable


@pytest.fixture
def arrived(monkeypatch):
    """The signals that got through, in order."""
    found: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda sent, _: found.append(sent)) for number in numbers}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_ends_the_block_with_the_exit_code_of_shells(capsys, arrived):
    left = []
    with pytest.raises(SystemExit) as caught, terminable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")
        finally:
            left.append("in order")
    assert caught.value.code == 143 and left == ["in order"]
    assert capsys.readouterr().err == "Stopped by SIGTERM before the first step.\n"
    os.kill(os.getpid(), signal.SIGTERM)
    assert arrived == [signal.SIGTERM], "the former handler is back"


def test_what_is_held_arrives_afterwards_and_a_second_signal_at_once(arrived):
    with held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
    assert arrived == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]


def test_held_inside_of_terminable(arrived):
    done = []
    with pytest.raises(SystemExit), terminable():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the run is marked")
        pytest.fail("it went on")
    assert done
    assert issubclass(Terminated, SystemExit)
