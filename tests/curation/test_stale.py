"""A cache that does not fit a run is refused with the part that differs."""

import json

import pytest
import torch

from vidlab.data.storage.latent_cache import HEADER_NAME
from vidlab.digests import MARK, SEAL
from vidlab.errors import UserError
from vidlab.lab.cache_key import settings, weights_digest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def cache(lab, made, bert):
    """One cache for all tests of this file."""
    folder = made / "cache"
    if not folder.exists():
        lab.encode(folder, *bert(), "data.views=2", "seed=4")
    return folder


CHANGES = {
    "autoencoder.scale: 0.3 in the cache, 0.5 in this run": ["autoencoder.scale=0.5"],
    "autoencoder.frames: 4 in the cache, 1 in this run": ["autoencoder=haar_frames"],
    "autoencoder: vidlab.autoencoders.haar.Haar in the cache, cached_parts.Noisy in this run": [
        "autoencoder._target_=cached_parts.Noisy"
    ],
    "precision: 32-true in the cache, bf16-mixed in this run": ["precision=bf16-mixed"],
    "data.frames: 4 in the cache, 8 in this run": ["data.frames=8"],
    "data.height: 16 in the cache, 12 in this run": ["data.height=12"],
    "data.width: 16 in the cache, 12 in this run": ["data.width=12"],
    "data.frame_stride: 1 in the cache, 2 in this run": ["data.frame_stride=2"],
    "data.views: 2 in the cache, 3 in this run": ["data.views=3"],
    "seed: 4 in the cache, 5 in this run": ["seed=5"],
    "text_encoder.max_tokens: 16 in the cache, 8 in this run": ["text_encoder.max_tokens=8"],
    "text_encoder.dtype: float32 in the cache, bfloat16 in this run": ["text_encoder.dtype=bfloat16"],
    "data.bucketing: absent in the cache, True in this run": ["data.bucketing.max_tokens=256"],
}  # fmt: skip


def test_the_run_it_was_made_for_is_accepted(lab, cache, bert):
    lab.check(*bert(), "seed=4", f"data.cache={cache}")
    lab.check(*bert(), "seed=4", "data.views=2", f"data.cache={cache}", "text_encoder.cache_mb=1")


@pytest.mark.parametrize(("reason", "words"), CHANGES.items(), ids=[reason.split(":")[0] for reason in CHANGES])
def test_every_part_of_the_key_is_named(lab, cache, bert, reason, words):
    with pytest.raises(UserError) as error:
        lab.check(*bert(), "seed=4", f"data.cache={cache}", *words)
    assert f"data.cache={cache} is stale." in str(error.value) and reason in str(error.value)
    assert "Encode again with python curate.py stage=encode" in str(error.value)


def test_a_learned_text_encoder_wants_captions(lab, cache):
    with pytest.raises(UserError, match=r"text_encoder: \S+PretrainedEncoder in the cache, learned with the model in"):
        lab.check("seed=4", f"data.cache={cache}")


def test_other_clips(lab, cache, bert):
    with pytest.raises(UserError, match=r"is stale. index: \w+:9 in the cache, \w+:10 in this run"):
        lab.check(*bert(), "seed=4", f"data.cache={cache}", clips=14)


def test_other_weights_and_other_tokenizers_in_the_same_place(lab, cache, bert):
    weights, words = bert("weights", seed=1), bert("words", words=["clip", "red", *map(str, range(16))])
    with pytest.raises(UserError, match=r"stale. text_encoder.weights: \w{32} in the cache, \w{32} in this run. Enc"):
        lab.check(*weights, "seed=4", f"data.cache={cache}")
    with pytest.raises(UserError, match=r"stale. text_encoder.tokenizer: \w{32} in the cache, \w{32} in this run. Enc"):
        lab.check(*words, "seed=4", f"data.cache={cache}")


def test_the_same_weights_in_another_place_are_the_same(lab, cache, bert):
    lab.check(*bert("elsewhere"), "seed=4", f"data.cache={cache}")


def test_the_seed_matters_to_random_views_alone(lab, tmp_path):
    folder = lab.encode(tmp_path / "middle", "seed=4")
    lab.check("seed=5", f"data.cache={folder}")


def test_other_formats_and_folders(lab, cache, bert, tmp_path):
    with pytest.raises(UserError, match=r"data.cache=\S+nothing: there is no readable cache.json. Make a cache with"):
        lab.check(f"data.cache={tmp_path / 'nothing'}")
    header = json.loads((cache / HEADER_NAME).read_text())
    header["key"]["format"] = 99
    (tmp_path / HEADER_NAME).write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"cache.json is damaged: .*make the cache again, in another folder"):
        lab.check(f"data.cache={tmp_path}")
    del header[SEAL], header[MARK]
    (tmp_path / HEADER_NAME).write_text(json.dumps(header))
    with pytest.raises(UserError, match="has format 99, this vidlab reads 1"):
        lab.check(f"data.cache={tmp_path}")
    (tmp_path / HEADER_NAME).write_text("[]")
    with pytest.raises(UserError, match=r"no readable cache.json"):
        lab.check(f"data.cache={tmp_path}")


def test_conditioning_that_needs_pixels_is_refused(lab, cache, bert):
    with pytest.raises(UserError, match=r"conditioning=MaskedVideo reads pixels .* Use conditioning=frame_replacement"):
        lab.check(*bert(), "seed=4", "conditioning=masked_video", f"data.cache={cache}")
    lab.check(*bert(), "seed=4", "conditioning=frame_replacement", "autoencoder=haar", f"data.cache={cache}")


def test_the_digest_sees_bits_names_and_shapes():
    def linear(*size: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(*size)

    one = weights_digest(linear(2, 3))
    assert one == weights_digest(linear(2, 3)) and len(one) == 32
    changed = linear(2, 3)
    changed.bias.data[0] = torch.nextafter(changed.bias.data[0], torch.tensor(9.0))
    assert (
        len({one, weights_digest(changed), weights_digest(linear(3, 2)), weights_digest(linear(2, 3).bfloat16())}) == 4
    )


def test_settings_leave_out_where_files_are(lab):
    cfg = lab.compose("train", "text_encoder=transformers", "text_encoder.path=/models/t5")
    found = settings(cfg.text_encoder, "text_encoder")
    assert found == {
        "text_encoder": "vidlab.text.pretrained.PretrainedEncoder", "text_encoder.max_tokens": 128,
        "text_encoder.dtype": "float32",
    }  # fmt: skip
