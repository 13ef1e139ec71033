import json
import random

import pytest
import torch

from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.open_sora_plan_config import CONFIG, FULL_LAYERS, model_settings, read_config
from vidlab.backbones.open_sora_plan_release import (
    INDEX,
    SINGLE,
    check_state,
    export_release,
    load_release,
    read_release,
    write_release,
)
from vidlab.clip import Controls, DenoiserInput, LatentShape
from vidlab.digests import MARK, SEAL
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.layers.layouts import Full3D, GroupSkip, LayerPlan, SingleSkip


def make(seed=0, **settings) -> OpenSoraPlan:
    torch.manual_seed(seed)
    plan = LayerPlan([SingleSkip(4), GroupSkip(4)], 1, 1)
    sizes = {"width": 24, "depth": 3, "heads": 2, "patch": (1, 2, 2), "layouts": plan}
    return OpenSoraPlan(LatentShape(8, 2, 4, 4), text_width=10, **(sizes | settings))


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def by_name(state) -> dict:
    return dict(sorted(state.items()))


@pytest.mark.parametrize("limit", [10**9, 20_000, 1])
def test_what_is_written_is_read_again(tmp_path, limit):
    model, other = make(0), make(1)
    export_release(model, tmp_path, limit)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if limit == 10**9:
        assert files == [SINGLE] and not (tmp_path / INDEX).exists()
    else:
        count = len(files)
        assert files[0] == f"diffusion_pytorch_model-00001-of-{count:05d}.safetensors"
        place = json.loads((tmp_path / INDEX).read_text())
        assert place["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
        assert set(place["weight_map"]) == set(model.state_dict()) and set(place["weight_map"].values()) == set(files)
        assert count == (len(model.state_dict()) if limit == 1 else count) > 3
    assert same(by_name(read_release(tmp_path)), by_name(model.state_dict()))
    load_release(other, tmp_path)
    assert same(other.state_dict(), model.state_dict())


def test_a_single_file_is_read_by_its_own_path(tmp_path):
    model = make()
    export_release(model, tmp_path)
    assert same(by_name(read_release(tmp_path / SINGLE)), by_name(model.state_dict()))


def test_a_release_loads_into_a_model_without_memory(tmp_path):
    model = make()
    export_release(model, tmp_path)
    with torch.device("meta"):
        other = make()
    load_release(other, tmp_path)
    assert same(other.state_dict(), model.state_dict())


def test_the_configuration_is_that_of_the_published_file(tmp_path):
    export_release(make(), tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["num_layers"] == 3 and written["attention_head_dim"] == 12 and written["num_attention_heads"] == 2
    assert written["sparse1d"] is True and written["sparse_n"] == 4 and written["caption_channels"] == 10
    with pytest.raises(UserError, match=r"config.json describes another model .*num_layers is 3 there and 2 here"):
        load_release(make(depth=2), tmp_path)
    load_release(make(rope_scale=(2, 1, 1)), tmp_path)  # positions may be squeezed at will
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UserError, match=r"21 tensors are unexpected \(transformer_blocks.2"):
        load_release(make(depth=2), tmp_path)


def test_layers_that_attend_otherwise_are_refused(tmp_path):
    """Without a field for it, layers 2 to 29 of the published class are sparse: the last of six are."""
    plans = {last: LayerPlan([SingleSkip(2), GroupSkip(2)], 2, last) for last in (0, 2)}
    export_release(make(depth=6, layouts=plans[0]), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    published = {name: value for name, value in config.items() if name not in (FULL_LAYERS, SEAL, MARK)}
    (tmp_path / CONFIG).write_text(json.dumps(published))
    load_release(make(depth=6, layouts=plans[0]), tmp_path)
    with pytest.raises(UserError, match=r"2 of 6 layers attend otherwise .*layer 4 is Full3D\(\) here and SingleSkip"):
        load_release(make(depth=6, layouts=plans[2]), tmp_path)
    with pytest.raises(UserError, match=r"4 of 6 layers attend otherwise .*k=3\) here and SingleSkip\(k=2"):
        load_release(make(depth=6, layouts=LayerPlan([SingleSkip(3), GroupSkip(3)], 2, 0)), tmp_path)


def test_damage_of_a_release_is_refused_or_changes_nothing(tmp_path):
    """Wrong bits anywhere in what was exported."""
    model, draw = make(), random.Random(0)
    export_release(model, tmp_path, 20_000)
    config, state = read_config(tmp_path), read_release(tmp_path)
    for file in (tmp_path / CONFIG, tmp_path / f"{SINGLE}.index.json", sorted(tmp_path.glob("*.safetensors"))[1]):
        good = file.read_bytes()
        for _ in range(15):
            bad = bytearray(good)
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            file.write_bytes(bad)
            try:
                assert read_config(tmp_path) == config and same(read_release(tmp_path), state)
            except UserError as error:
                assert "\n" not in str(error)
        file.write_bytes(good)
    weights = model.state_dict()
    next(iter(weights.values())).fill_(float("nan"))
    write_release(weights, tmp_path / "nan")
    with pytest.raises(UserError, match=r"holds numbers that are not finite. Fetch the release again"):
        read_release(tmp_path / "nan")


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        read_release(tmp_path)
    export_release(make(), tmp_path, 20_000)
    with pytest.raises(UserError, match="already holds weights"):
        export_release(make(), tmp_path)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_release(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=f"{second.name} of .* is missing"):
        read_release(tmp_path)


@pytest.mark.parametrize("change", ["outside", "lost", "not json"])
def test_an_index_that_lies(tmp_path, change):
    export_release(make(), tmp_path, 20_000)
    index = json.loads((tmp_path / INDEX).read_text())
    if change == "outside":
        index["weight_map"]["scale_shift_table"] = "../elsewhere.safetensors"
        message = "not a file of its own folder"
    elif change == "lost":
        index["weight_map"]["extra"] = index["weight_map"]["scale_shift_table"]
        message = r"1 tensors are missing \(extra\)"
    else:
        message = "is not JSON"
    (tmp_path / INDEX).write_text("{" if change == "not json" else json.dumps(index))
    with pytest.raises(UserError, match=message):
        read_release(tmp_path)


@pytest.mark.parametrize(
    "place",
    [None, [], {}, 3, "x", {"a": 1}, {"a": None}, {"a": ["x"]}, {"a": ""}, {"a": "."}, {"a": ".."}, {"a": "b\0c"},
     {"a": "x" * 5000}, {"a": "\udc80"}, {"a": "\x1b[31m"}, {"a": {}}],
)  # fmt: skip
def test_an_index_of_other_types_is_one_sentence(tmp_path, place):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": place}))
    message = "does not say which shard|which is not a file of its own folder|is incomplete"
    with pytest.raises(UserError, match=message) as caught:
        read_release(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_weights_that_do_not_fit_are_named_and_counted(tmp_path):
    model = make()
    state = dict(model.state_dict())
    state["more"] = state.pop("proj_out.weight")
    with pytest.raises(
        UserError, match=r"1 tensors are missing \(proj_out.weight\) and 1 tensors are unexpected \(more\)"
    ):
        check_state(model, state, "here")
    state = dict(model.state_dict()) | {"proj_out.weight": torch.zeros(1, 2)}
    with pytest.raises(
        UserError, match=r"1 tensors have another shape .*proj_out.weight \(1, 2\) instead of \(32, 24\)"
    ):
        check_state(model, state, "here")
    with pytest.raises(UserError, match="max_shard_bytes=0"):
        write_release(state, tmp_path, 0)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("controls", [(), (8, 4)])
def test_a_model_is_built_from_a_released_folder_alone(tmp_path, sparse, controls):
    layouts = LayerPlan([SingleSkip(2), GroupSkip(2)], 1, 1) if sparse else LayerPlan([Full3D()])
    model = make(control_channels=controls, rope_scale=(2, 1, 1), depth=4, layouts=layouts).eval()
    with torch.no_grad():  # the controls of a new model are silent
        [p.normal_(std=0.1) for p in model.parameters()]
    export_release(model, tmp_path, 20_000)
    found = OpenSoraPlan.released(tmp_path, LatentShape(8, 2, 4, 4))
    assert [b.layout for b in found.transformer_blocks] == [b.layout for b in model.transformer_blocks]
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    latents, t = torch.randn(2, 8, 2, 4, 4), torch.rand(2)
    given = Controls(torch.randn(2, 12, 2, 4, 4), torch.ones(2, 1, 2, 4, 4)) if controls else None
    answers = [m(DenoiserInput(latents, t, 1000 * t, controls=given)).prediction for m in (found, model)]
    assert torch.equal(*answers)


def test_the_published_configuration_is_the_published_model():
    """The file of ``any93x640x640_i2v``, and the number of parameters its weights have."""
    file = {
        "_class_name": "OpenSoraInpaint_v1_3", "_diffusers_version": "0.30.2", "activation_fn": "gelu-approximate",
        "attention_bias": True, "attention_head_dim": 96, "caption_channels": 4096, "cross_attention_dim": 2304,
        "double_self_attention": False, "dropout": 0.0, "in_channels": 8, "interpolation_scale_h": 1.0,
        "interpolation_scale_t": 1.0, "interpolation_scale_w": 1.0, "norm_elementwise_affine": False,
        "norm_eps": 1e-06, "num_attention_heads": 24, "num_layers": 32, "only_cross_attention": False,
        "out_channels": 8, "patch_size": 2, "patch_size_t": 1, "sample_size": [80, 80], "sample_size_t": 24,
        "sparse1d": True, "sparse_n": 4, "upcast_attention": False, "vae_scale_factor_t": 4,
    }  # fmt: skip
    for config, parameters in ((file, 2_782_713_632), (file | {"_class_name": "OpenSoraT2V_v1_3"}, 2_771_981_600)):
        with torch.device("meta"):
            model = OpenSoraPlan(LatentShape(8, 24, 44, 80), **model_settings(config))
        assert sum(p.numel() for p in model.parameters()) == parameters
        layouts = [block.layout for block in model.transformer_blocks]
        assert [i for i, layout in enumerate(layouts) if layout == Full3D()] == [0, 1, 30, 31]
        assert layouts[2:30] == [SingleSkip(4), GroupSkip(4)] * 14


def test_weights_are_converted_as_they_are_read(tmp_path):
    model = make()
    export_release(model, tmp_path, 20_000)
    found = OpenSoraPlan.released(tmp_path, LatentShape(8, 2, 4, 4), dtype=torch.bfloat16)
    assert all(torch.equal(p, model.get_parameter(name).bfloat16()) for name, p in found.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "OpenSoraT2V_v1_5"}, "is of the class OpenSoraT2V_v1_5; a denoiser of Open-Sora Plan v1.3 is"),
        ({"num_layers": None}, "lacks sizes of the denoiser: num_layers must be"),
        ({"activation_fn": "geglu"}, r"activation_fn=geglu \(only gelu-approximate\)"),
        ({"out_channels": 16}, r"out_channels=16 \(only in_channels, 8\)"),
    ],
)
def test_configurations_of_other_models(tmp_path, change, message):
    export_release(make(), tmp_path)
    config = read_json(tmp_path / CONFIG) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        OpenSoraPlan.released(tmp_path, LatentShape(8, 2, 4, 4))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UserError, match=r"is not a released denoiser: it has no config\.json"):
        OpenSoraPlan.released(tmp_path, LatentShape(8, 2, 4, 4))
