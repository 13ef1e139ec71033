"""CLIPSIM with a tiny random CLIP: the same arithmetic as with a trained one."""

import json

import pytest
import torch
from metric_clips import moving_clips

from vidlab.errors import UserError
from vidlab.metrics.clipsim import CLIPSIM, prepared

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    words = ["[PAD]", "[UNK]", "a", "red", "blue", "disc", "end"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="end", model_max_length=8
    )
    fast.save_pretrained(path)
    text = {**SMALL, "vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 6, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return path


def test_clipsim_is_the_mean_cosine_of_frames_and_caption(folder):
    from transformers import AutoTokenizer, CLIPModel

    clips, captions = moving_clips(2, frames=3, size=16), ["a red disc end", "a disc end"]
    metric = CLIPSIM(str(folder))
    metric.update(clips, captions=captions, keys=["a", "b"])
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    cosines = []
    for clip, caption in zip(clips, captions, strict=True):
        # frames of the network's own size: nothing is resized or cut
        frames = (clip.transpose(0, 1) + 1) / 2
        frames = (frames - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            # CLIPModel's own logits are exp(logit_scale) times the cosines
            answer = model(**tokenizer(caption, return_tensors="pt"), pixel_values=frames)
        cosines.append((answer.logits_per_image[:, 0] / model.logit_scale.exp()).mean().item())
    found = metric.result()
    assert sorted(found.scores) == pytest.approx(sorted(cosines), abs=1e-5)
    assert found.settings["scale"] == "cosine" and -1 <= found.value <= 1


def test_frames_are_resized_by_their_short_side_and_cut_to_the_centre(folder):
    metric = CLIPSIM(str(folder))
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = 1.0
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    shown = prepared(metric._loaded, wide)
    assert shown.shape == (1, 3, 16, 16)
    torch.testing.assert_close(shown[0, :, 8, 8], white)
    assert prepared(metric._loaded, torch.zeros(1, 3, 7, 5)).shape == (1, 3, 16, 16)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"metrics.clipsim.path is not set: give a local folder"):
        CLIPSIM()
    with pytest.raises(UserError, match=r"there is no such folder"):
        CLIPSIM(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"is not a readable CLIP .* preprocessor_config.json"):
        CLIPSIM(str(tmp_path))
    with pytest.raises(UserError, match=r"clipsim needs one caption per clip"):
        CLIPSIM(str(folder)).update(moving_clips(2, frames=2))
