import json
import sys

import pytest
import torch
from tiny_image_vae import write_image_vae

from vidlab.autoencoders.image_vae import ImageVAE
from vidlab.errors import MissingPackageError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("image_vae")
    write_image_vae(path, shift_factor=0.25)
    return path


@pytest.fixture
def clip():
    return torch.rand(2, 3, 3, 8, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_each_frame_is_what_diffusers_makes_of_the_picture(folder, tmp_path, clip):
    network, ours = write_image_vae(tmp_path, shift_factor=0.25), ImageVAE(str(folder))
    with torch.no_grad():
        found = ours.posterior(clip)
        for frame in range(3):
            expected = network.encode(clip[:, :, frame]).latent_dist
            torch.testing.assert_close(found.mean[:, :, frame], (expected.mean - 0.25) * 0.5)
            deviation = (0.5 * found.log_variance[:, :, frame]).exp()
            torch.testing.assert_close(deviation, expected.std * 0.5)
            picture = network.decode(expected.mean).sample
            torch.testing.assert_close(ours.decode(found.mean)[:, :, frame], picture, rtol=1e-4, atol=1e-5)
    assert ours.latent_shape(3, 8, 6) == (4, 3, 4, 3) and found.mean.dtype == torch.float32


def test_how_many_frames_pass_together_changes_nothing(folder, clip):
    with torch.no_grad():
        whole = ImageVAE(str(folder), None).encode(clip)
        for count in (1, 4):
            torch.testing.assert_close(ImageVAE(str(folder), count).encode(clip), whole)


def test_weights_in_half_precision_give_single_precision_latents(folder, clip):
    exact, half = ImageVAE(str(folder)), ImageVAE(str(folder))
    half.network.to(torch.bfloat16)
    with torch.no_grad():
        latents = half.encode(clip)
        assert latents.dtype == half.decode(latents).dtype == torch.float32
        expected = exact.encode(clip)
    assert (latents - expected).abs().max() < 0.05 * expected.abs().max()


def test_it_stays_frozen(folder):
    vae = ImageVAE(str(folder)).train()
    assert not vae.network.training and not any(p.requires_grad for p in vae.parameters())


def test_a_whole_pipelines_folder(tmp_path, folder, clip):
    write_image_vae(tmp_path / "vae", shift_factor=0.25)
    with torch.no_grad():
        assert torch.equal(ImageVAE(str(tmp_path)).encode(clip), ImageVAE(str(folder)).encode(clip))


def test_weights_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(UserError, match=r"autoencoder\.path is not set\. Give a local folder"):
        ImageVAE()
    with pytest.raises(UserError, match=r"there is no such folder"):
        ImageVAE("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config\.json with diffusion_pytorch_model\.safetensors"):
        ImageVAE(str(tmp_path / "empty"))
    for name, key, value, message in (
        ("kind", "_class_name", "AutoencoderKLCogVideoX", "holds a AutoencoderKLCogVideoX"),
        ("size", "block_out_channels", [16, 16], "cannot be read"),
        ("depth", "layers_per_block", 2, r"weights do not fit the configuration \(missing_keys"),
        ("list", "shift_factor", [[1]], r"shift_factor=\[\[1\]\] in config.json must be a finite number"),
        ("huge", "scaling_factor", 10**400, r"scaling_factor=1000+ in config.json must be a finite number"),
        ("nan", "scaling_factor", float("nan"), "scaling_factor=nan in config.json must be a finite number"),
        ("zero", "scaling_factor", 0, "scaling_factor=0.0 in config.json must be positive"),
    ):
        write_image_vae(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=message):
            ImageVAE(str(tmp_path / name))
    write_image_vae(tmp_path / "cut")
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        ImageVAE(str(tmp_path / "cut"))
    with pytest.raises(UserError, match=r"frames_at_once=0 must be 1 or more"):
        ImageVAE(str(folder), 0)


def test_a_hub_that_does_not_answer(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(
        UserError, match=r"nobody/nothing is neither a local folder .* hub did not give it \(no route\)"
    ):
        ImageVAE("nobody/nothing")


def test_without_diffusers(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackageError, match=r"needs the package diffusers .*: pip install diffusers"):
        ImageVAE(str(folder))


def test_what_a_path_names(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert ImageVAE.locate(folder.name) == str(folder)
    assert ImageVAE.locate("stabilityai/sd-vae-ft-mse") == "stabilityai/sd-vae-ft-mse"
