"""Running the programs as a person does: own process, own working folder, real signals and exit codes.

Importing torch, Lightning and MLflow takes most of a short run. ``Commands`` pays it once: a small server process
imports them and forks one child per command, which then executes ``train.py`` or ``generate.py`` from its first line.
The workers of one test session share the server.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}  # of commands
TINY = (
    "trainer=cpu", "precision=32-true", "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1",
    "data.source.train_clips=64", "data.source.val_clips=8", "data.val_clips=4", "data.batch_size=4",
    "data.num_workers=0", "sampler.steps=2", "callbacks.previews.count=1", "logger.system_metrics=false",
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A finished command; ``code`` is negative when a signal ended it."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last message on stderr, without the hint about VIDLAB_DEBUG."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("(set VIDLAB_DEBUG")]
        return lines[-1] if lines else ""


class Running:
    """A command that has been started."""

    def __init__(self, commands: "Commands", pid: int, out: Path, err: Path) -> None:
        self.pid, self._commands, self._out, self._err = pid, commands, out, err

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop_when(self, pattern: str, folder: Path, number: int = signal.SIGKILL, seconds: float = 60) -> Done:
        """Send a signal as soon as a file that matches exists."""
        deadline = time.monotonic() + seconds
        while not any(folder.glob(pattern)):
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"no {pattern} after {seconds} s; {self.wait()}")
            time.sleep(0.005)
        self.send(number)
        return self.wait()

    def wait(self) -> Done:
        code = self._commands.ask({"wait": self.pid})
        return Done(code, self._out.read_text(), self.messages())

    def messages(self) -> str:
        """What it and the processes that it has started have written to stderr by now."""
        return self._err.read_text()


class Commands:
    """The server's end in the tests.

    Args:
        folder: where what commands print is kept.
        address: a file that names the server's socket. Whoever finds no server there starts one, and ends it.
    """

    def __init__(self, folder: Path, address: Path) -> None:
        self._folder, self._count, self._server = folder, 0, None
        connection = connect(Path(address.read_text())) if address.is_file() else None
        if connection is None:
            connection = self._start(address)
        self._connection, self._requests = connection, connection.makefile("rw")
        self.ask({"environment": {**os.environ, **ENVIRONMENT}})

    def _start(self, address: Path) -> socket.socket:
        # the path of a socket has about a hundred characters at most
        place = Path(tempfile.mkdtemp(dir="/tmp" if len(tempfile.gettempdir()) > 70 else None))
        command = [sys.executable, str(Path(__file__).with_name("server.py")), str(place / "socket")]
        self._server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
        )
        assert self._server.stdout is not None and self._server.stdout.readline() == "ready\n"
        self._place = place
        address.write_text(str(place / "socket"))
        connection = connect(place / "socket")
        assert connection is not None
        return connection

    def ask(self, request: Mapping[str, Any]) -> Any:
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return json.loads(self._requests.readline())

    def start(
        self,
        program: str,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        max_file_bytes: int | None = None,
        module: bool = False,
    ) -> Running:
        """Start a program of the repository, or a module as ``python -m`` does.

        ``max_file_bytes`` makes longer files fail as a full disk does.
        """
        self._count += 1
        out, err = (self._folder / f"{self._count:03d}.{name}" for name in ("out", "err"))
        request = {
            "program": program if module else str(REPOSITORY / program), "module": module,
            "arguments": list(arguments), "cwd": str(cwd), "env": dict(env or {}),
            "out": str(out), "err": str(err), "max_file_bytes": max_file_bytes,
        }  # fmt: skip
        return Running(self, self.ask(request), out, err)

    def run(self, program: str, *arguments: str, **options: Any) -> Done:
        return self.start(program, *arguments, **options).wait()

    def start_code(self, code: str, *arguments: str, cwd: Path, **options: Any) -> Running:
        """Start lines of Python as a program."""
        path = self._folder / f"{self._count:03d}.py"
        path.write_text(code)
        return self.start(str(path), *arguments, cwd=cwd, **options)

    def run_code(self, code: str, *arguments: str, cwd: Path, **options: Any) -> Done:
        return self.start_code(code, *arguments, cwd=cwd, **options).wait()

    def close(self) -> None:
        self._requests.close()
        self._connection.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            shutil.rmtree(self._place)


def connect(path: Path) -> socket.socket | None:
    """To a server, if it is there."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


@dataclass(frozen=True)
class Lab:
    """A working folder and what a person types in it."""

    commands: Commands
    folder: Path

    def train(self, *arguments: str, **options: Any) -> Done:
        return self.commands.run("train.py", *TINY, *arguments, cwd=self.folder, **options)

    def start_train(self, *arguments: str, **options: Any) -> Running:
        return self.commands.start("train.py", *TINY, *arguments, cwd=self.folder, **options)

    def generate(self, *arguments: str, **options: Any) -> Done:
        return self.commands.run(
            "generate.py",
            "accelerator=cpu",
            "precision=32-true",
            "num_videos=2",
            *arguments,
            cwd=self.folder,
            **options,
        )

    @property
    def source(self) -> Path:
        """What PYTHONPATH needs for a copy of vidlab that is not installed."""
        return REPOSITORY / "src"

    @property
    def runs(self) -> list[Path]:
        """Run folders, oldest first."""
        return sorted(path.parent for path in self.folder.glob("runs/*/*/run.json"))


def new_lab(commands: Commands, folder: Path, database: Path) -> Lab:
    """A working folder with an empty MLflow store: creating one takes MLflow seconds, copying it none."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(database, folder / "mlflow.db")
    return Lab(commands, folder)
