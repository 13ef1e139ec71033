"""Where a result comes from: code revision, versions, hardware and command line."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from vidlab.files import write_json
from vidlab.redaction import redact

PACKAGES = ("torch", "lightning", "hydra-core", "mlflow", "av", "numpy", "vidlab")


@dataclass(frozen=True)
class Hardware:
    """The machine, without its name. ``memory_gib`` is the installed main memory."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What is needed to repeat a run.

    Args:
        revision: the git commit of the source tree; None outside git.
        dirty: whether tracked files differ from that commit; None outside git.
        python: version of the interpreter.
        packages: package name to version; None where a package is not installed.
        hardware: processors and memory.
        overrides: the command line, without the program and without passwords.
    """

    revision: str | None
    dirty: bool | None
    python: str
    packages: dict[str, str | None]
    hardware: Hardware
    overrides: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Write ``provenance.json`` into an existing folder and return its path."""
        return write_json(Path(folder) / "provenance.json", asdict(self))

    def tags(self) -> dict[str, str]:
        """The few facts worth a column in a table of runs."""
        machine = ", ".join(self.hardware.gpus) or self.hardware.cpu
        tags = {"vidlab.machine": machine, "vidlab.version": self.packages["vidlab"] or "source tree"}
        tags |= {f"vidlab.{name}": self.packages[name] or "not installed" for name in ("torch", "lightning")}
        if self.revision is not None:
            tags |= {"mlflow.source.git.commit": self.revision, "vidlab.dirty": str(self.dirty).lower()}
        return tags


def collect(overrides: Sequence[str] = (), source: Path | None = None) -> Provenance:
    """Collect the provenance of this process; never fails for want of git.

    Args:
        overrides: the Hydra overrides of this run.
        source: a folder of the source tree; by default, that of this file.
    """
    folder = source or Path(__file__).parent
    # an installed copy may lie inside the repository of someone else, whose revision says nothing about it
    revision = _git(folder, "rev-parse", "HEAD") if _git(folder, "ls-files", ".") else None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no") if revision else None
    return Provenance(
        revision=revision,
        dirty=None if status is None else bool(status),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        hardware=_hardware(),
        overrides=tuple(map(redact, overrides)),
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> Hardware:
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return Hardware(_cpu_model(), _cores(), memory, tuple(gpus))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use, which on shared machines are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
