import json
from pathlib import Path

import pytest

from vidlab.errors import UserError
from vidlab.hub import model_folder, read_json, refuse_code


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


@pytest.mark.parametrize(
    "file, settings, wanted",
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, r"classes of its own \(auto_map\)"),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil.T", None]}},
            r"classes of its own \(auto_map\)",
        ),
        ("config.json", {"vision": [{"deep": {"auto_map": "evil--evil.Model"}}]}, r"classes of its own \(auto_map\)"),
        ("config.json", {"attn_implementation": "evil/kernel"}, r"kernels \(attn_implementation\)"),
        ("config.json", {"_attn_implementation": {"text_config": "evil/kernel:fn"}}, r"kernels \(_attn_impl"),
        ("config.json", {"text_config": {"_attn_implementation": "flash_attention_2"}}, r"kernels \(_attn_impl"),
        ("config.json", {"experts_implementation": "evil/kernel@v1"}, r"kernels \(experts_implementation\)"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, r"kernels for quantized weights"),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}}, r"classes of its own \(auto_map\)"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/model"}, r"has adapter_config\.json, an adapter"),
        ("config.json", [1], "must hold an object of settings"),
        ("config.json", {"num_hidden_layers": 2**31}, "says num_hidden_layers=2147483648, and no model has so many"),
        ("config.json", {"text_config": {"num_layers": 1025}}, "says num_layers=1025, and no model has so many"),
    ],
)
def test_a_models_folder_that_asks_for_code_is_refused(tmp_path, file, settings, wanted):
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=wanted) as caught:
        refuse_code(tmp_path, "text_encoder.path=x")
    assert file in str(caught.value)


def test_settings_that_stand_for_nothing_are_let_be(tmp_path):
    plain = {"auto_map": {}, "quantization_config": None, "attn_implementation": "sdpa", "use_kernels": False,
             "_attn_implementation_autoset": True, "num_layers": 1024, "layer_norm_eps": 2000.0,
             "text_config": {"_attn_implementation": None}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(plain))
    refuse_code(tmp_path, "text_encoder.path=x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "{", "\0", '{"a": ' + "9" * 5000 + "}"])
def test_json_that_is_damaged_or_without_end_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_json(tmp_path / "config.json")
