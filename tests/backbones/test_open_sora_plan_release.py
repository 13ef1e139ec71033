import json

import pytest
import torch

from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.backbones.open_sora_plan_release import (
    CONFIG,
    INDEX,
    SINGLE,
    check_state,
    export_release,
    load_release,
    load_text_to_video,
    read_release,
    write_release,
)
from vidlab.clip import Controls, DenoiserInput, LatentShape
from vidlab.errors import UserError
from vidlab.layers.layouts import GroupSkip, LayerPlan, SingleSkip


def make(seed=0, **settings) -> OpenSoraPlan:
    torch.manual_seed(seed)
    plan = LayerPlan([SingleSkip(4), GroupSkip(4)], 1, 1)
    sizes = {"width": 24, "depth": 3, "heads": 2, "patch": (1, 2, 2)}
    return OpenSoraPlan(LatentShape(8, 2, 4, 4), text_width=10, layouts=plan, **(sizes | settings))


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


def test_text_to_video_weights_start_an_image_conditioned_model():
    parent, child = make(0), make(1, control_channels=(8, 4))
    mask_weight = child.pos_embed_mask[0].proj.weight.clone()
    taken, adapted, fresh, unused = load_text_to_video(child, parent.state_dict())
    assert set(taken) == set(parent.state_dict()) and unused == ()
    assert adapted == tuple(f"pos_embed_masked_hidden_states.0.proj.{x}" for x in ("weight", "bias"))
    assert set(fresh) == {
        "pos_embed_masked_hidden_states.1.weight", "pos_embed_mask.0.proj.weight", "pos_embed_mask.0.proj.bias",
        "pos_embed_mask.1.weight",
    }  # fmt: skip
    assert torch.equal(child.pos_embed_masked_hidden_states[0].proj.weight, parent.pos_embed.proj.weight)
    assert torch.equal(child.pos_embed_mask[0].proj.weight, mask_weight)
    latents, t = torch.randn(2, 8, 2, 4, 4), torch.rand(2)
    controls = Controls(torch.randn(2, 12, 2, 4, 4), torch.ones(2, 1, 2, 4, 4))
    with torch.no_grad():
        given = child(DenoiserInput(latents, t, 1000 * t, controls=controls)).prediction
        assert (given - parent(DenoiserInput(latents, t, 1000 * t)).prediction).abs().max() == 0.0


def test_an_image_conditioned_release_is_taken_whole():
    parent, child = make(0, control_channels=(8, 4)), make(1, control_channels=(8, 4))
    taken, adapted, fresh, _ = load_text_to_video(child, parent.state_dict())
    assert set(taken) == set(child.state_dict()) and adapted == fresh == ()


def test_other_weights_do_not_start_an_image_conditioned_model():
    child = make(1, control_channels=(8, 4))
    before = {key: value.clone() for key, value in child.state_dict().items()}
    with pytest.raises(UserError, match=r"21 tensors are missing \(transformer_blocks.2"):
        load_text_to_video(child, make(0, depth=2).state_dict())
    with pytest.raises(UserError, match="another shape"):
        load_text_to_video(child, make(0, width=12).state_dict())
    assert same(child.state_dict(), before)
