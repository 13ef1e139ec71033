import pytest
import torch
from test_pretrained import CAPTIONS, save_tokenizer

from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim import MMDiM
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.lab.exported import FOLDERS
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.text.pretrained import PretrainedEncoder
from vidlab.text.t5_clip import TokensAndVector
from vidlab.training.denoiser_plan import DenoiserPlan

WIDTHS = (16, 24)  # of T5's tokens and of CLIP's vector


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """T5 with its tokenizer elsewhere, and the text tower of a CLIP, as published: config, safetensors, tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    at = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    size = save_tokenizer(at / "tokenizer_2", "t5")
    config = T5Config(vocab_size=size, d_model=WIDTHS[0], d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(at / "text_encoder_2")
    size = save_tokenizer(at / "text_encoder", "bert")
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=WIDTHS[1], intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(at / "text_encoder")
    return {
        "path": str(at / "text_encoder_2"),
        "tokenizer": str(at / "tokenizer_2"),
        "pooled_path": str(at / "text_encoder"),
        "pooled_max_tokens": 12,
        "max_tokens": 32,
    }


@torch.no_grad()
def test_tokens_are_those_of_one_and_the_vector_that_of_the_other(folders):
    encoder = TokensAndVector(**folders)
    found = encoder(CAPTIONS)
    alone = PretrainedEncoder(folders["path"], 32, tokenizer=folders["tokenizer"])(CAPTIONS)
    assert torch.equal(found.tokens, alone.tokens) and torch.equal(found.mask, alone.mask)
    assert found.pooled.shape == (3, WIDTHS[1])
    assert (encoder.width, encoder.pooled_width, encoder.trainable) == (*WIDTHS, False)
    # by hand: the last norm at the end token, 3, of a batch that is padded behind it
    model, tokenizer = encoder.vector.model, encoder.vector.tokenizer
    ids = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")["input_ids"]
    last = model(input_ids=ids).last_hidden_state
    expected = torch.stack([row[(number == 3).nonzero()[0, 0]] for row, number in zip(last, ids, strict=True)])
    torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found.pooled, last.mean(dim=1), atol=1e-2)


@torch.no_grad()
def test_a_whole_clip_gives_the_same_vector_as_its_text_tower(folders, tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    tower = CLIPTextModel.from_pretrained(folders["pooled_path"])
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 8}  # fmt: skip
    whole = CLIPModel(CLIPConfig(text_config=tower.config.to_dict(), vision_config=vision, projection_dim=5))
    whole.text_model.load_state_dict(tower.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "bert")
    one, other = TokensAndVector(**folders), TokensAndVector(**{**folders, "pooled_path": str(tmp_path)})
    torch.testing.assert_close(other(CAPTIONS).pooled, one(CAPTIONS).pooled)


def test_bits_do_not_depend_on_batch_mates_and_nothing_is_trained(folders):
    encoder = TokensAndVector(**folders)
    together = encoder(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        assert torch.equal(together.pooled[i], encoder([caption]).pooled[0])
    again = TokensAndVector(**folders, cache_mb=0)(CAPTIONS)
    torch.testing.assert_close(again.pooled, together.pooled, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().vector.model.training


def test_clip_reads_the_beginning_of_a_caption_that_the_other_reads_whole(folders):
    encoder = TokensAndVector(**folders)
    long = "a red circle moves left and the blue square moves slowly right"  # 12 words
    assert (encoder.count_tokens(long), encoder.vector.count_tokens(long)) == (13, 14)
    encoder.check(long)
    assert encoder([long]).mask.sum() == 13 and encoder.truncated == 0
    assert not torch.equal(encoder([long]).pooled, encoder([long[:30]]).pooled)


def test_what_is_missing_is_named(folders):
    for missing, message in (
        (("path",), r"^text_encoder\.path is not set\. Give local folders"),
        (("pooled_path",), r"^text_encoder\.pooled_path is not set"),
        (("path", "pooled_path"), r"^text_encoder\.path and text_encoder\.pooled_path are not set"),
    ):
        with pytest.raises(UserError, match=message):
            TokensAndVector(**{**folders, **dict.fromkeys(missing)})
    with pytest.raises(UserError, match=r"text_encoder\.pooled_path=/no/such/clip: there is no such folder"):
        TokensAndVector(**{**folders, "pooled_path": "/no/such/clip"})
    with pytest.raises(UserError, match=r"text_encoder\.pooled_max_tokens=77: .* at most 12 tokens"):
        TokensAndVector(**{**folders, "pooled_max_tokens": 77})
    swapped = {**folders, "pooled_path": folders["path"], "pooled_tokenizer": folders["tokenizer"]}
    with pytest.raises(UserError, match=r"text_encoder\.pooled_path: the folder holds a model of type 't5'"):
        TokensAndVector(**swapped)


def plan(backbone, text, pooled):
    return DenoiserPlan(backbone, LatentShape(3, 1, 4, 4), text, pooled, {}, (), "none")


def test_the_model_takes_both_widths_from_the_encoder(folders):
    def mmdim(**settings):
        sizes = {"width": 24, "depth": 1, "heads": 2, "patch": (1, 2, 2), "dual_depth": 0, "mixer": SSDMixer}
        return MMDiM(**(sizes | settings))

    def dit(**settings):
        return DiT(layouts=LayerPlan([Full3D()]), width=24, depth=1, heads=2, patch=(1, 2, 2), **settings)

    model = plan(mmdim, *WIDTHS).build()
    assert model.condition.pooled[0].in_features == 24 and model.text_tokens.in_features == 16
    assert model.spec.pooled_width == 24
    assert plan(mmdim, 16, 16).build().condition.pooled[0].in_features == 16
    with pytest.raises(UserError, match=r"pooled_width=7: the vector of the text encoder is 24 wide\. Leave it null"):
        plan(lambda **known: mmdim(**{**known, "pooled_width": 7}), *WIDTHS)
    with pytest.raises(UserError, match="tokens 16 wide and one vector 24 wide, and the model reads both at one"):
        plan(dit, *WIDTHS)


def test_an_export_has_a_place_for_each_folder():
    keys = {key for group, key in FOLDERS if group == "text_encoder"}
    assert keys == {"path", "tokenizer", "pooled_path", "pooled_tokenizer"}
    assert len(set(FOLDERS.values())) == len(FOLDERS)
