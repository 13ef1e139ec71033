import json
import logging
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidlab.autoencoders.weight_files import SAFETENSORS
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae.kernels import wavelet_kernels
from vidlab.autoencoders.wfvae.published_config import config_of, settings_of
from vidlab.autoencoders.wfvae.weights import export_weights, load_weights
from vidlab.errors import UserError
from vidlab.hub import read_json

TINY = {"latent_channels": 4, "width": 8, "encoder_energy": 4, "decoder_energy": 4, "encoder_blocks": 1,
        "decoder_blocks": 1, "connect_blocks": 2, "compat": True}  # fmt: skip
# as the authors' file for the large model has it, with the sizes of TINY
CONFIG = {
    "_class_name": "WFVAEModel",
    "_diffusers_version": "0.30.2",
    "attention_type": "AttnBlock3DFix",
    "base_channels": 8,
    "connect_res_layer_num": 2,
    "decoder_energy_flow_hidden_size": 4,
    "decoder_num_resblocks": 1,
    "dropout": 0.0,
    "encoder_energy_flow_hidden_size": 4,
    "encoder_num_resblocks": 1,
    "l1_dowmsample_block": "Downsample",
    "l1_downsample_wavelet": "HaarWaveletTransform2D",
    "l1_upsample_block": "Upsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform2D",
    "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D",
    "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D",
    "latent_dim": 4,
    "norm_type": "layernorm",
    "scale": [0.18215] * 4,
    "shift": [0, 0, 0, 0],
    "t_interpolation": "trilinear",
    "use_attention": True,
}


def tiny(seed=0, **settings) -> WFVAE:
    torch.manual_seed(seed)
    return WFVAE(**{**TINY, **settings}).eval()


def published_state(model: WFVAE) -> dict[str, torch.Tensor]:
    """What the authors' class stores: parameters and kernels, no scales."""
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("latent_")}
    return state | wavelet_kernels(0.3536)


def write(folder: Path, model: WFVAE, config=CONFIG, **changes: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(published_state(model) | changes, folder / SAFETENSORS)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(a: WFVAE, b: WFVAE) -> bool:
    x = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        latents = a.encode(x)
        return torch.equal(latents, b.encode(x)) and torch.equal(a.decode(latents), b.decode(latents))


def test_kernels_are_the_published_ones():
    kernels = wavelet_kernels(0.3536)
    # entries as the published files have them, (time, row, column)
    by_hand = {
        "encoder.wavelet_transform_in.h_conv.conv.weight": [[[1, 1], [1, 1]], [[1, 1], [1, 1]]],
        "encoder.wavelet_transform_l2.g_conv.conv.weight": [[[1, -1], [1, -1]], [[1, -1], [1, -1]]],
        "encoder.wavelet_transform_in.hh_v_conv.conv.weight": [[[1, 1], [-1, -1]], [[-1, -1], [1, 1]]],
        "decoder.inverse_wavelet_transform_out.h_v": [[[1, 1], [1, 1]], [[-1, -1], [-1, -1]]],
        "decoder.inverse_wavelet_transform_l2.gh_v": [[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]],
    }
    for name, signs in by_hand.items():
        assert kernels[name].shape == (1, 1, 2, 2, 2)
        torch.testing.assert_close(kernels[name][0, 0], 0.3536 * torch.tensor(signs))
    for name, signs in {"aa": [[1, 1], [1, 1]], "ad": [[1, 1], [-1, -1]], "da": [[1, -1], [1, -1]]}.items():
        for coder in ("encoder.wavelet", "decoder.inverse_wavelet"):
            assert (2 * kernels[f"{coder}_transform_l1.{name}"][0, 0]).tolist() == signs
    assert len(kernels) == 2 * (8 + 4 + 8)


def test_the_transform_is_a_convolution_with_these_kernels():
    from vidlab.layers.wavelets import RELEASED, haar2d, haar3d

    x, kernels = torch.randn(1, 1, 4, 4, 4), wavelet_kernels(RELEASED)
    order = [f"{name}{suffix}" for suffix in ("", "_v") for name in ("h", "g", "hh", "gh")]
    bank = torch.cat([kernels[f"encoder.wavelet_transform_in.{name}_conv.conv.weight"] for name in order])
    torch.testing.assert_close(haar3d(x, RELEASED), torch.nn.functional.conv3d(x, bank, stride=2))
    bank = torch.cat([kernels[f"encoder.wavelet_transform_l1.{name}"] for name in ("aa", "ad", "da", "dd")])
    frames = torch.nn.functional.conv2d(x[0].transpose(0, 1), bank, stride=2).transpose(0, 1)[None]
    torch.testing.assert_close(haar2d(x), frames)


def test_a_published_folder_loads_and_says_so(tmp_path, caplog):
    model = tiny()
    folder = write(tmp_path / "vae", model)
    with caplog.at_level(logging.INFO):
        other = WFVAE(**TINY, path=str(folder)).eval()
    assert same(model, other) and other.trained
    other.check_trained()
    count = len(model.state_dict()) - 2
    assert f"{count} tensors of published weights" in caplog.text and "40 wavelet kernels agree" in caplog.text


def test_sizes_from_the_folder_alone(tmp_path):
    model = tiny()
    other = WFVAE.from_published(write(tmp_path / "vae", model, CONFIG | {"scale": [1, 2, 3, 4]}), chunk=2).eval()
    assert other.encoder_sizes == model.encoder_sizes and other.decoder_sizes == model.decoder_sizes
    assert other.compat and other.chunk == 2 and other.latent_scale.flatten().tolist() == [1, 2, 3, 4]


def test_settings_count_before_those_of_the_folder(tmp_path):
    folder = write(tmp_path / "vae", tiny(), CONFIG | {"scale": [1, 2, 3, 4]})
    other = WFVAE.from_published(folder, scale=1.0, shift=[0.5] * 4, dropout=0.25)
    assert other.latent_scale.flatten().tolist() == [1] * 4 and other.latent_shift.flatten().tolist() == [0.5] * 4
    assert other.encoder_sizes.dropout == 0.25
    with pytest.raises(UserError, match=r"autoencoder.width=\d+ must be"):
        WFVAE.from_published(folder, width=16)


def test_the_release_of_v1_3_has_its_sizes():
    config = CONFIG | {"latent_dim": 8, "base_channels": 128, "encoder_energy_flow_hidden_size": 64,
                       "decoder_energy_flow_hidden_size": 128,
                       "encoder_num_resblocks": 2, "decoder_num_resblocks": 2}  # fmt: skip
    with torch.device("meta"):
        model = WFVAE(**settings_of(config))
    assert sum(p.numel() for p in model.parameters()) == 147_347_660
    assert model.channels == 8  # four equal numbers of scale serve eight channels


def test_a_round_trip_is_exact(tmp_path):
    first = write(tmp_path / "a", tiny())
    export_weights(WFVAE.from_published(first), tmp_path / "b")
    a, b = load_file(first / SAFETENSORS), load_file(tmp_path / "b" / SAFETENSORS)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    config = read_json(tmp_path / "b" / "config.json")
    assert config == {k: v for k, v in CONFIG.items() if k != "_diffusers_version"} | {
        "scale": pytest.approx([0.18215] * 4), "shift": [0.0] * 4
    }  # fmt: skip
    with pytest.raises(UserError, match="already holds"):
        export_weights(tiny(), tmp_path / "b")


def test_exact_wavelets_are_exported_as_they_are(tmp_path):
    export_weights(tiny(compat=False), tmp_path)
    kernel = load_file(tmp_path / SAFETENSORS)["encoder.wavelet_transform_in.h_conv.conv.weight"]
    assert kernel.unique().item() == pytest.approx(8**-0.5, rel=1e-7)
    assert WFVAE.from_published(tmp_path).trained and not WFVAE.from_published(tmp_path).compat
    with pytest.raises(UserError, match=r"wavelets of 1 / \(2 sqrt 2\)\. Set autoencoder\.compat=false"):
        WFVAE.from_published(tmp_path, compat=True)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_of_the_repository(tmp_path, prefix):
    """Averages of trained parameters only, raw weights of both networks."""
    raw, averaged = tiny(1), tiny(2)
    content = {
        "state_dict": {"gen_model": published_state(raw), "dics_model": {"main.0.weight": torch.zeros(1)}},
        "ema_state_dict": {f"{prefix}{name}": value for name, value in averaged.named_parameters()},
        "current_step": 7,
    }
    torch.save(content, tmp_path / "averaged.ckpt")
    found = load_weights(model := tiny(), tmp_path / "averaged.ckpt")
    assert same(model, averaged) and (found.kind, found.wavelets) == ("averaged", 0)
    torch.save(content | {"ema_state_dict": {}}, tmp_path / "raw.ckpt")
    found = load_weights(model, tmp_path / "raw.ckpt")
    assert same(model, raw) and (found.kind, found.wavelets) == ("raw", 40)
    with pytest.raises(UserError, match=r"holds 2 checkpoints \(averaged\.ckpt, raw\.ckpt\); name one"):
        load_weights(model, tmp_path)
    (tmp_path / "raw.ckpt").unlink()
    assert load_weights(model, tmp_path).source.endswith("averaged.ckpt")


def test_checkpoints_of_vidlab_carry_their_scale(tmp_path):
    raw, averaged = tiny(1, scale=[1.0, 2, 3, 4], shift=0.5), tiny(2)
    content = {
        "state_dict": {f"autoencoder.{k}": v for k, v in raw.state_dict().items()}
        | {"discriminator.w": torch.zeros(1)},
        "ema": {f"autoencoder.{k}": v for k, v in averaged.named_parameters()},
    }
    torch.save(content, tmp_path / "last.ckpt")
    model = tiny(path=str(tmp_path / "last.ckpt"))
    assert model.latent_scale.flatten().tolist() == [1, 2, 3, 4] and model.latent_shift.unique().item() == 0.5
    averaged.set_latent_scale([1.0, 2, 3, 4], 0.5)
    assert same(model, averaged)
    # an explicit setting wins
    assert tiny(path=str(tmp_path / "last.ckpt"), scale=2.0).latent_scale.unique().item() == 2
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "last.ckpt")
    assert same(tiny(path=str(tmp_path / "last.ckpt")), raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    model = tiny()
    save_file({k: v.to(dtype) for k, v in published_state(model).items()}, tmp_path / "half.safetensors")
    found = load_weights(other := tiny(3), tmp_path / "half.safetensors")
    assert found.wavelets == 40 and all(p.dtype == torch.float32 for p in other.parameters())
    assert torch.equal(other.decoder.conv_out.weight, model.decoder.conv_out.weight.to(dtype).float())


def test_wavelets_must_agree(tmp_path):
    folder = write(tmp_path / "a", tiny())
    with pytest.raises(UserError, match=r"wavelets of 0\.3536\. Set autoencoder\.compat=true"):
        WFVAE(**{**TINY, "compat": False}, path=str(folder))
    name = "decoder.inverse_wavelet_transform_l1.ad"
    folder = write(tmp_path / "b", tiny(), **{name: torch.randn(1, 1, 2, 2)})
    with pytest.raises(UserError, match="wavelet kernels that are not Haar's"):
        load_weights(tiny(), folder)


def test_loading_is_strict_and_leaves_the_model_unchanged(tmp_path):
    state = published_state(tiny())
    del state["encoder.conv_out.conv.bias"]
    state["encoder.quant.weight"] = torch.zeros(1)
    state["decoder.conv_out.bias"] = torch.zeros(3)
    save_file(state, tmp_path / SAFETENSORS)
    model = tiny(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path)
    message = str(caught.value)
    assert "1 tensors are missing (encoder.conv_out.conv.bias)" in message
    assert "1 tensors are unexpected (encoder.quant.weight)" in message
    assert "1 tensors are of another shape (decoder.conv_out.bias (3,) instead of (24,))" in message
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not model.trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_channels": 16}, r"autoencoder\.width=8 must be 16"),
        ({"connect_res_layer_num": 1, "latent_dim": 8}, r"latent_channels=4 must be 8, .*connect_blocks=2 must be 1"),
        ({"norm_type": "groupnorm"}, r"norm_type=groupnorm \(only layernorm\).*cannot be processed in chunks"),
        ({"t_interpolation": "nearest"}, r"t_interpolation=nearest \(only trilinear\)"),
        ({"scale": [1, 2]}, r"autoencoder\.scale has 2 numbers"),
    ],
)  # fmt: skip
def test_another_architecture_is_named(tmp_path, changes, message):
    folder, model = write(tmp_path / "vae", tiny(), CONFIG | changes), tiny()
    with pytest.raises(UserError, match=message):
        load_weights(model, folder)
    assert not model.trained


def test_a_silent_configuration_means_the_published_defaults(tmp_path):
    folder = write(tmp_path / "vae", tiny(), {k: v for k, v in CONFIG.items() if k != "norm_type"})
    with pytest.raises(UserError, match="norm_type=groupnorm"):
        WFVAE.from_published(folder)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_damaged_and_harmful_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"state_dict": Harmful()}))
    torch.save({"state_dict": Harmful()}, tmp_path / "b.ckpt")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    torch.save(torch.zeros(1), tmp_path / "d.ckpt")
    for file, message in {"a.ckpt": "never loads", "b.ckpt": "never loads", "c.safetensors": "cannot be read",
                          "d.ckpt": "does not hold weights by name"}.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_weights(tiny(), file)
    assert not Path("harmed").exists()
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match=f"neither {SAFETENSORS} nor a .ckpt file"):
        load_weights(tiny(), "vae")
    with pytest.raises(UserError, match="it has no config"):
        WFVAE.from_published("vae")
    write(tmp_path / "vae", tiny())
    for text, message in {"{": "is not JSON", "[]": "must hold an object"}.items():
        (tmp_path / "vae" / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_weights(tiny(), "vae")


@pytest.mark.parametrize("name", [SAFETENSORS, "config.json", "vae.ckpt"])
def test_damage_of_weights_is_refused_or_changes_nothing(tmp_path, name):
    model, draw = tiny(), random.Random(0)
    export_weights(model, tmp_path)
    if name == "vae.ckpt":
        torch.save({"state_dict": model.state_dict()}, tmp_path / name)
    good, refused = (tmp_path / name).read_bytes(), 0
    for _ in range(12):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        (tmp_path / name).write_bytes(bad)
        try:
            other = tiny()
            load_weights(other, tmp_path / name if name == "vae.ckpt" else tmp_path)
            assert same(other.eval(), model)
        except UserError as error:
            refused += "Fetch it again, or export the run again" in str(error) or "not JSON" in str(error)
    assert refused > 6


def test_weights_are_of_one_shape_and_kind_and_finite(tmp_path):
    for value, message in {
        (float("nan"),): r"latent_shift \(4, 1, 1, 1\) holds numbers that are not finite",
        (1,): r"latent_shift has shape \(4, 1, 1, 1\) and type torch.int64, the model's has",
    }.items():
        state = tiny().state_dict() | {"latent_shift": torch.tensor(value).expand(4, 1, 1, 1).clone()}
        torch.save({"state_dict": state}, tmp_path / "vae.ckpt")
        with pytest.raises(UserError, match=message):
            load_weights(tiny(), tmp_path / "vae.ckpt")


def test_weights_into_a_model_without_memory(tmp_path):
    model = tiny()
    folder = write(tmp_path / "vae", model)
    with torch.device("meta"):
        empty = WFVAE(**TINY)
    load_weights(empty, folder)
    assert same(empty.eval(), model)


def test_config_names_every_setting():
    assert config_of(tiny()).keys() == CONFIG.keys() - {"_diffusers_version"}
