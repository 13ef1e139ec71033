from pathlib import Path

import pytest

from vidlab.errors import UserError
from vidlab.hub import model_folder


class Hub:
    """Stands for the hub: files by repository, and what was asked of it."""

    def __init__(self, folder: Path, files: dict[str, list[str]]) -> None:
        self.folder, self.files, self.asked = folder, files, []

    def snapshot_download(self, repository, allow_patterns, local_files_only=False):
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked.append((repository, tuple(allow_patterns), local_files_only))
        place = self.folder / repository.replace("/", "--")
        if local_files_only:
            if not place.is_dir():
                raise LocalEntryNotFoundError("not cached")
            return str(place)
        for name in self.files[repository]:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).touch()
        return str(place)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    files = {"owner/system": ["config.json", "vae/config.json", "vae/a.safetensors", "vae/a.bin", "big/b.safetensors"]}
    found = Hub(tmp_path / "cache", files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: found.files[name])
    return found


def find(reference: str, advice: str = "") -> Path:
    return model_folder(
        reference, "system.vae", ("config.json", "*.safetensors"), lambda f: (f / "config.json").is_file(), advice
    )


def test_a_folder_of_a_repository_is_fetched_alone_and_once(hub):
    folder = find("owner/system/vae")
    assert sorted(path.name for path in folder.iterdir()) == ["a.safetensors", "config.json"]
    assert not (folder.parent / "big").exists() and not (folder.parent / "config.json").exists()
    fetches = len(hub.asked)
    assert find("owner/system/vae") == folder
    assert len(hub.asked) == fetches + 1 and hub.asked[-1][2]  # the cache alone was asked


def test_a_local_folder_comes_first(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "system").mkdir(parents=True)
    assert find("owner/system") == Path("owner/system") and not hub.asked


@pytest.mark.parametrize("reference", ["./owner/system", "/owner/system", "~/owner/system", "system"])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(hub, reference):
    with pytest.raises(UserError, match=r"system.vae=.*: there is no such folder \(/.*\). Look there."):
        find(reference, " Look there.")
    assert not hub.asked


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(
        UserError, match=r"system.vae=owner/other is neither a local folder nor in .* \('owner/other'\)"
    ):
        find("owner/other")
