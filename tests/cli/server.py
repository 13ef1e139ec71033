"""Imports what programs import, and forks one process for each test process that connects; that one reads requests,
one JSON object a line, and forks a command or waits for one. See command.py.
"""

import gc
import json
import os
import pickle
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar


class ReadyRank(subprocess.Popen):  # type: ignore[type-arg]
    """A process that was forked before its program is known, and runs it when it is started as a new one would be."""

    waiting: ClassVar[list[tuple[int, int]]] = []  # process and the pipe that it reads its program from

    def __init__(self, args: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
        self.pid, pipe = self.waiting.pop()
        with os.fdopen(pipe, "wb") as file:
            pickle.dump((args[1:], dict(env), cwd or str(Path.cwd())), file)
        self.args, self.returncode, self._child_created = args, None, True
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()


def keep_ranks_ready(arguments: Sequence[str]) -> None:
    """Lightning starts the other processes of a training anew, each of which would import everything again."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    devices = [word.partition("=")[2] for word in arguments if word.startswith("trainer.devices=")]
    for _ in range(int(devices[-1]) - 1 if devices and devices[-1].isdigit() else 0):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            leave(lambda: rank(read))  # noqa: B023  it does not return
        os.close(read)
        ReadyRank.waiting.append((pid, write))
        subprocess_script.subprocess = SimpleNamespace(Popen=ReadyRank)


def rank(pipe: int) -> None:
    """Wait for a program and run it; there is none where the first process has ended without starting others."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    with os.fdopen(pipe, "rb") as file, suppress(EOFError):
        arguments, environment, folder = pickle.load(file)
        os.environ.clear()
        os.environ.update(environment)
        rank_zero_only.rank = int(environment["LOCAL_RANK"])  # as read when Lightning is imported
        os.chdir(folder)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def child(request: dict[str, Any]) -> None:
    for number, key in ((1, "out"), (2, "err")):
        file = os.open(request[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    # a shell starts background jobs with the interrupt ignored, and their children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["max_file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    place = request["cwd"] if request["module"] else str(Path(request["program"]).parent)
    sys.path[0:1] = [place, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = [request["program"], *request["arguments"]]
    keep_ranks_ready(request["arguments"])
    if request["module"]:
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(request["program"], run_name="__main__")


def leave(run: Callable[[], None]) -> None:
    """Run a program and end the process the way the interpreter does."""
    import traceback

    code = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def prepare() -> None:
    """What is shipped is read now, and not by every command; no command waits for the disk."""
    from hydra import compose, initialize_config_dir
    from hydra.core.singleton import Singleton

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import quick_disk
    import shipped_choices

    sys.path.pop()
    quick_disk.wait_for_no_disk()
    before = Singleton.get_state()
    shipped_choices.read_once()
    with initialize_config_dir(str(shipped_choices.ROOT / "conf"), version_base="1.3"):
        for name in ("train", "generate", "evaluate", "curate"):
            compose(name, return_hydra_config=True)
    Singleton.set_state(before)


def serve(connection: socket.socket) -> None:
    """Answer one test process until it is gone; its commands have its environment."""
    with connection, connection.makefile("rw") as requests:
        for line in requests:
            request = json.loads(line)
            if "environment" in request:
                os.environ.clear()
                os.environ.update(request["environment"])
                answer = 0
            elif "wait" in request:
                _, status = os.waitpid(request["wait"], 0)
                answer = os.waitstatus_to_exitcode(status)
            else:
                answer = os.fork()
                if answer == 0:
                    leave(lambda: child(request))  # noqa: B023  it does not return
            print(json.dumps(answer), file=requests, flush=True)


def main() -> None:
    import av  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import vidlab.lab.curate
    import vidlab.lab.evaluation.run
    import vidlab.lab.generate
    import vidlab.lab.train  # noqa: F401

    prepare()
    gc.freeze()  # so that no child looks for garbage in what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody need wait for who has answered a test process
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                serve(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
