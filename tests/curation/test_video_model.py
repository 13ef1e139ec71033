"""A LLaVA of random weights in the real file format."""

from pathlib import Path

import numpy as np
import pytest

from vidlab.curation.captions.captioner import SourceClip
from vidlab.curation.captions.video_model import VideoModelCaptioner
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.video import DecodeLimits, encode
from vidlab.errors import UserError

WORDS = ["a", "red", "blue", "square", "moves", "left", "what", "is", "this"]


def save_llava(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", "<image>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=["<image>"], **names)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(**size, vocab_size=len(vocabulary), initializer_range=0.3, eos_token_id=2),
        image_token_index=3,
        image_seq_length=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)  # its likeliest words are words
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_local_model_describes_clips(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(video := encode(np.zeros((8, 24, 24, 3), np.uint8), 8))
    row = ClipRow("clip.mp4", "clip.mp4", 0, len(video), 8, 24, 24, 8.0, 1.0, ("x",), "train", "", None)
    clip = SourceClip(row, tmp_path, DecodeLimits())
    captioner = VideoModelCaptioner(str(save_llava(tmp_path / "tiny-llava")), "what is this", frames=3, max_tokens=5)
    (found,) = captioner.describe([clip], tmp_path)
    (caption,) = found.captions
    assert caption.source == "tiny-llava" and len(caption.text.split()) <= 5
    usage = captioner.spent()["tiny-llava"]
    assert (usage.calls, usage.prompt_tokens) == (1, 3 * 4 + 3)  # 4 patches of each frame, and 3 words
    (again,) = captioner.describe([clip], tmp_path)
    assert again.captions == found.captions and captioner.spent()["tiny-llava"].calls == 0
    other = save_llava(tmp_path / "other" / "tiny-llava")  # another model whose folder has the same name
    another = VideoModelCaptioner(str(other), "what is this", frames=3, max_tokens=5)
    assert list(another.describe([clip], tmp_path)) and another.spent()["tiny-llava"].calls == 1
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    (broken,) = captioner.describe([clip], tmp_path)
    assert not broken.captions and broken.reason


def test_what_is_no_model_is_refused(tmp_path):
    for path, message in ((None, "captioner.path is not set"), (str(tmp_path), r"needs config\.json")):
        with pytest.raises(UserError, match=message):
            VideoModelCaptioner(path)
