"""A job of a sweep that trains in several processes: it becomes a command of its own.

Lightning starts the other processes of a run by repeating the command line that it finds, which in a sweep is that of
the whole sweep: each would run all jobs. As a command of its own, ``python train.py <its settings>``, the job is
repeated alone, and what one job has left in the environment does not reach the next.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vidlab.command_line import setting
from vidlab.errors import UserError
from vidlab.lab.sweeps.membership import STOPPED, last_value, membership

STARTER = "VIDLAB_STARTER"  # in the environment of a command: the process that started it
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
IN_ONE_PROCESS = ("spawn", "fork", "notebook")  # strategies that start processes without the command line
# Hydra's own settings that are the sweep's, not the job's.
OF_THE_SWEEP = ("hydra.sweep.", "hydra/sweeper", "hydra.sweeper.", "hydra/launcher", "hydra.launcher.", "hydra.mode",
                "hydra.run.dir")  # fmt: skip


def starts_processes(trainer: DictConfig) -> bool:
    """Whether Lightning will start further processes for a training; those of torchrun and SLURM are there already."""
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return False
    if any(kind in str(trainer.get("strategy", "")) for kind in IN_ONE_PROCESS):
        return False
    return _devices(trainer.get("devices", 1), str(trainer.get("accelerator", "auto"))) > 1


def _devices(devices: Any, accelerator: str) -> int:
    """How many processes a machine has, by Lightning's rules; on a CPU ``auto`` is one."""
    text = str(devices).strip("[] ")
    if text in ("auto", "-1"):
        import torch

        return torch.cuda.device_count() if accelerator != "cpu" else 1
    if isinstance(devices, int) or ("," not in text and not str(devices).startswith("[")):
        return int(text) if text.isdigit() else 1
    return len([part for part in text.split(",") if part.strip()])


def run_as_command(cfg: DictConfig) -> float | None:
    """Run this job as a command of its own, in its folder; returns its last ``val/loss``.

    Its record in the sweep, which it writes itself, tells how it went: a process group on CPUs aborts now and then
    after everything is done.

    Raises:
        UserError: it failed, with its own message.
        SystemExit: 130 or 143, when a signal has ended it.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    own = [word for word in hydra.overrides.hydra if not word.startswith(OF_THE_SWEEP)]
    words = [*hydra.overrides.task, *own, setting("hydra.run.dir", folder)]
    with left_to_process() as started:
        process = subprocess.Popen([*_program(hydra), *words], env=own_environment())
        started.append(process)
        code = process.wait()
    if code in STOPPED:
        sys.exit(code)
    member = membership(folder)
    job = member.job if member is not None else None
    if (job is None and code != 0) or (job is not None and job.state != "finished"):
        raise UserError((job.message if job else "") or f"its processes ended with code {code}")
    return last_value(folder)


def _program(hydra: DictConfig) -> list[str]:
    """The command of this program, with the folder of configurations that the user has added."""
    import __main__

    spec = getattr(__main__, "__spec__", None)
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.is_file() and spec is None:
        program = [sys.executable, str(script.resolve())]
    else:  # python -m vidlab train, or a worker process, whose own command is another
        program = [sys.executable, "-m", "vidlab", str(hydra.job.config_name)]
    added = [one.path for one in hydra.runtime.config_sources if one.provider == "command-line"]
    return [*program, *(word for path in added for word in ("--config-dir", path))]


def own_environment() -> dict[str, str]:
    """Without Lightning's own seed, which would be another job's, and with what ``end_with_starter`` reads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PL_GLOBAL_SEED")}
    return kept | {STARTER: str(os.getpid())}


def end_with_starter() -> None:
    """Ask for SIGTERM when the command that started this process is gone, as by SIGKILL, which it cannot hand on.

    Training then ends after a checkpoint, and the same command goes on later. Where the starter is gone already, the
    signal comes at once. Only Linux can do this; without a starter nothing happens.
    """
    starter = os.environ.pop(STARTER, None)  # it is not that of the processes that this one will start
    if starter is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != starter:
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def left_to_process() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Signals are the other process's affair: Ctrl-C reaches it from the terminal, SIGTERM is handed on."""
    started: list[subprocess.Popen[bytes]] = []
    if threading.current_thread() is not threading.main_thread():
        yield started
        return

    def hand_on(number: int, _: Any) -> None:
        for process in started:
            process.send_signal(number)

    # a handler, not SIG_IGN, which the other process would inherit
    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
