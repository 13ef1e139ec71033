from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from vidlab.autoencoders.haar import Haar
from vidlab.autoencoders.identity import Identity
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae.weights import export_weights
from vidlab.clip import ClipBatch
from vidlab.errors import DataError, UserError
from vidlab.lab.evaluation.autoencoders import usable_metrics
from vidlab.lab.evaluation.entries import Entry, build_entry, choices
from vidlab.lab.evaluation.reconstruction import Cost, Setup, reconstruct_held_out, write_originals
from vidlab.lab.evaluation.reconstruction_report import Subject, notes, side_by_side_table, write_channels
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.evaluation.scoring import Scores, score
from vidlab.metrics.reconstruction.lpips import VideoLPIPS
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.perceptual.lpips import LPIPS
from vidlab.training.autoencoder.latent_stats import LatentMoments

CONF = Path(__file__).parents[3] / "conf"
SETUP = Setup("cpu", "32-true", 8.0)
TINY = {"latent_channels": 2, "width": 4, "encoder_energy": 4, "decoder_energy": 4, "encoder_blocks": 0}


def test_metrics_that_need_longer_clips_are_not_built():
    nodes = OmegaConf.create(
        {
            "psnr": {"_target_": "vidlab.metrics.reconstruction.psnr.PSNR"},
            "gone": None,
            "long": {
                "_target_": "vidlab.metrics.sets.fvd.FVD",
                "extractor": "would have to be fetched",
                "frames": 4,
                "stride": 3,
            },
        }
    )
    built, left_out = usable_metrics(nodes, 9)
    assert list(built) == ["psnr"] and left_out == {"long": "it needs 10 frames, and the clips have 9"}
    with pytest.raises(UserError, match="none of the metrics can be measured: long: it needs 10 frames"):
        usable_metrics({"long": nodes.long}, 9)


def batch(frames: int = 5, height: int = 16, width: int = 16) -> ClipBatch:
    drawn = torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(0))
    pixels = (drawn * 255).round() / 127.5 - 1  # as 8 bits give them
    return ClipBatch(pixels, ("a dog", "a cat"), ("d", "c"), (0, 0), 0, (8.0, 8.0))


def test_metrics_that_need_larger_frames_are_left_out_by_name(tmp_path):
    originals = write_originals([batch()], tmp_path, 8.0)
    metrics = {"lpips": VideoLPIPS(LPIPS("alex").eval()), "psnr": PSNR()}
    scores = score(metrics, originals, (), originals=originals)
    assert list(scores.results) == ["psnr"] and scores.results["psnr"].value == 100
    assert scores.not_measured["lpips"].startswith("it needs 31 pixels a side, and the clips have 16")
    enlarged = {"lpips": VideoLPIPS(LPIPS("alex").eval(), size=(36, 36))}
    assert score(enlarged, originals, (), originals=originals).results["lpips"].value == 0


class Shifting(Identity):
    """Makes every pixel brighter by a tenth of the range, and counts."""

    calls = 0

    def decode(self, latents):
        Shifting.calls += 1
        return latents + 0.2


def test_reconstructions_are_scored_against_their_own_originals(tmp_path):
    clips = [batch()]
    clips[0].pixels.clamp_(-1, 0.7)
    originals = write_originals(clips, tmp_path / "originals", 8.0)
    made = reconstruct_held_out(Entry("s", "s", Shifting()), clips, tmp_path / "made", SETUP, lambda _: None)
    assert [(clip.key, clip.caption) for clip in made.clips] == [("d", "a dog"), ("c", "a cat")]
    scores = score({"psnr": PSNR()}, made.clips, (), originals=originals)
    # 0.2 of a range of 2, in steps of 1 / 127.5: 25 or 26 of 255
    assert 19.8 < scores.results["psnr"].value < 20.3
    assert Shifting.calls == 4  # once for memory, three times for speed


def test_what_is_not_finite_is_an_error(tmp_path):
    class Broken(Identity):
        def decode(self, latents):
            return latents * float("nan")

    with pytest.raises(DataError, match=r"broken makes NaN pixels of clip d"):
        reconstruct_held_out(Entry("broken", "", Broken()), [batch()], tmp_path, SETUP, lambda _: None)


def test_costs_by_hand(tmp_path):
    made = reconstruct_held_out(Entry("haar", "", Haar(2, 4, 4)), [batch()], tmp_path, SETUP, lambda _: None)
    cost = made.cost
    assert (cost.size, cost.padded, cost.latent) == ((5, 16, 16), (6, 16, 16), (96, 3, 4, 4))
    assert cost.values == 96 * 48 and cost.compression == pytest.approx(3 * 5 * 256 / 4608) and cost.parameters == 0


def subject(name: str, **changes) -> Subject:
    cost = Cost(1_234_567, (8, 3, 8, 8), (9, 64, 64), (9, 64, 64), 10.0, 20.0, 30.4, None, 2)
    # two channels, four values each: 1 and 3 twice over, and 0
    moments = LatentMoments(torch.tensor([[4.0, 4.0], [8.0, 0.0], [20.0, 0.0]], dtype=torch.float64))
    return Subject(Evaluated(name, name, (), Scores()), replace(cost, **changes), moments)


def test_the_table_and_what_it_says():
    subjects = [subject("a"), subject("b", padded=(9, 72, 64))]
    text = side_by_side_table(subjects)
    assert "| a | 8 x 3 x 8 x 8 | 1.22 | 1536 | 72 | 1,234,567 | 10 | 20 | 30 | - |" in text
    told = notes(subjects, SETUP)
    assert told[-1].startswith("- b does not take 9 x 64 x 64: the last row was repeated to 9 x 72 x 64")
    assert len(told) == 5
    assert "decode_peak_mib" not in subjects[0].facts()
    assert subjects[0].facts()["latent_mean"] == 1 and subjects[0].facts()["latent_std"] == pytest.approx(1.5**0.5)


def test_moments_of_every_channel(tmp_path):
    rows = write_channels(tmp_path / "latents.csv", [subject("a")]).read_text().splitlines()
    assert rows == ["subject,channel,mean,std", "a,0,2.0,1.0", "a,1,0.0,0.0"]


def test_latents_are_measured_on_every_clip_once(tmp_path):
    clips = [batch(), batch()]
    made = reconstruct_held_out(Entry("haar", "", Haar(1, 4, 4)), clips, tmp_path, SETUP, lambda _: None)
    latents = torch.cat([Haar(1, 4, 4).encode(one.pixels) for one in clips])
    assert made.latents.sums[0].tolist() == [latents[:, 0].numel()] * latents.shape[1]
    torch.testing.assert_close(made.latents.mean.float(), latents.mean((0, 2, 3, 4)))
    torch.testing.assert_close(made.latents.std.float(), latents.std((0, 2, 3, 4), correction=0), rtol=1e-4, atol=1e-5)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield OmegaConf.create({"name": "vidlab", "tracking_uri": None, "weights": "ema", "allow": []})


def test_choices_and_their_settings(cfg):
    haar = build_entry("haar", cfg)
    assert (haar.name, haar.source, type(haar.autoencoder)) == ("haar", "autoencoder=haar", Haar)
    given = build_entry({"choice": "haar", "frames": 2, "scale": 1.5}, cfg)
    assert given.name == "haar (frames=2, scale=1.5)" and given.autoencoder.stride.frames == 2
    assert given.source == "autoencoder=haar autoencoder.frames=2 autoencoder.scale=1.5"
    assert {"haar", "trilinear", "image_vae", "paper/wfvae_s"} <= set(choices())


def test_published_folders(cfg, tmp_path):
    model = WFVAE(**TINY)
    export_weights(model, tmp_path / "published")
    exact = build_entry(str(tmp_path / "published"), cfg).autoencoder
    export_weights(WFVAE(**TINY, compat=True), tmp_path / "released")
    found = build_entry("released", cfg)
    assert isinstance(exact, WFVAE) and not exact.compat  # published wavelets have four digits
    assert isinstance(found.autoencoder, WFVAE) and found.autoencoder.compat
    assert found.name == "released" and isinstance(found.autoencoder, WFVAE) and not found.autoencoder.training
    (tmp_path / "released" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match=r"holds a VQModel; vidlab reads AutoencoderKL, CausalVideoVAE, WFVAEModel"):
        build_entry("released", cfg)


def test_runs_of_autoencoders_and_of_denoisers(cfg, tmp_path):
    model = WFVAE(**TINY)
    node = {"_target_": "vidlab.autoencoders.wfvae.WFVAE", "path": "where/training/began", **TINY}
    state = {f"autoencoder.{name}": value for name, value in model.state_dict().items()}
    config = {"autoencoder": node, "data": {}, "task": {}, "seed": 0}
    torch.save({"state_dict": state, "config": OmegaConf.to_yaml(config), "global_step": 7}, tmp_path / "a.ckpt")
    found = build_entry("a.ckpt", cfg)
    assert found.step == 7 and found.source == str(tmp_path / "a.ckpt") and found.trained.seed == 0
    for name, value in found.autoencoder.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    node["path"] = str(tmp_path / "a.ckpt")  # of a denoiser: its autoencoder is frozen and lies elsewhere
    frozen = {"state_dict": {"backbone.x": torch.zeros(1)}, "config": OmegaConf.to_yaml(config)}
    torch.save(frozen, tmp_path / "b.ckpt")
    assert torch.equal(build_entry("b.ckpt", cfg).autoencoder.last_decoder_weight(), model.last_decoder_weight())
