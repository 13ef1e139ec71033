import json
import shutil

import pytest
import torch

from vidlab.errors import UserError
from vidlab.text.pretrained import FeatureCache, PretrainedEncoder

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "right", "the", "and", "slowly"]
CAPTIONS = ["a red circle moves left", "", "the blue square and a red circle moves slowly right"]


def save_tokenizer(folder, ending):
    """A word-level tokenizer in the real file format, ending captions as BERT or as T5 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "t5": ["<pad>", "</s>", "<unk>"]}[ending]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    unknown = "[UNK]" if ending == "bert" else "<unk>"
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "[CLS] $A [SEP]" if ending == "bert" else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, vocabulary[word]) for word in special]
    )
    names = {"unk_token": unknown, "pad_token": special[0]}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if ending == "bert" else {"eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    size = save_tokenizer(folder, "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    size = save_tokenizer(folder, "t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "t5"])
def encoder(request):
    return PretrainedEncoder(str(request.getfixturevalue(request.param)), max_tokens=16)


def test_shapes_mask_and_padding(encoder):
    text = encoder.encode(CAPTIONS)
    counts = [encoder.count_tokens(caption) for caption in CAPTIONS]
    extra = 2 if encoder.model.config.model_type == "bert" else 1
    assert counts == [5 + extra, extra, 10 + extra]
    assert text.mask.sum(1).tolist() == counts
    assert text.tokens.shape == (3, max(counts), 16) and text.pooled.shape == (3, 16)
    assert encoder.width == 16 and encoder.trainable is False
    assert (text.tokens[~text.mask] == 0).all()


def test_features_are_the_models_last_hidden_states(encoder):
    ids = encoder.tokenizer(CAPTIONS[0], return_tensors="pt")["input_ids"]
    expected = encoder.model(input_ids=ids).last_hidden_state
    text = encoder.encode(CAPTIONS[:1])
    torch.testing.assert_close(text.tokens, expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(text.pooled, expected.detach().mean(1), rtol=0, atol=1e-6)


def test_features_do_not_depend_on_batch_mates_to_the_last_bit(encoder):
    together = encoder.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert torch.equal(together.tokens[i, : alone.tokens.shape[1]], alone.tokens[0])


def test_whole_batches_agree_with_single_captions(encoder):
    alone = encoder.encode(CAPTIONS)
    encoder._cache = None
    torch.testing.assert_close(encoder.encode(CAPTIONS).tokens, alone.tokens, rtol=0, atol=1e-6)


@torch.no_grad()
def test_padded_captions_are_the_models_features_of_padding_too(bert):
    encoder = PretrainedEncoder(str(bert), max_tokens=8, padded=True)
    text = encoder.encode(["a red circle", ""])
    assert text.tokens.shape == (2, 8, 16) and text.mask.all()
    ids = torch.tensor([[2, 4, 5, 7, 3, 0, 0, 0]])  # [CLS] a red circle [SEP] and three [PAD], all of them attended to
    expected = encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(text.tokens[:1], expected)


def test_each_caption_is_computed_once(encoder):
    calls = []
    encoder.model.register_forward_hook(lambda *args: calls.append(1))
    encoder.encode([*CAPTIONS, CAPTIONS[0]])
    encoder.encode(CAPTIONS)
    assert len(calls) == 3


def test_stays_frozen_and_in_evaluation_mode(encoder):
    before = encoder.encode(CAPTIONS).tokens
    encoder.train()
    encoder._cache = FeatureCache(2**20)
    after = encoder.encode(CAPTIONS).tokens
    assert not encoder.training and not encoder.model.training
    assert not after.requires_grad and not any(p.requires_grad for p in encoder.parameters())
    assert torch.equal(before, after)  # BERT and T5 have dropout, which would show


def test_autocast_of_the_trainer_does_not_reach_it(encoder):
    before = encoder.encode(CAPTIONS).tokens
    encoder._cache = None
    with torch.autocast("cpu", torch.bfloat16):
        after = encoder.encode(CAPTIONS).tokens
    assert after.dtype == torch.float32
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


def test_only_the_encoder_of_an_encoder_decoder_is_loaded(t5):
    names = [name for name, _ in PretrainedEncoder(str(t5), max_tokens=16).named_parameters()]
    assert names and not any("decoder" in name or "lm_head" in name for name in names)


def test_a_cut_caption_keeps_its_ending_token(encoder, caplog):
    encoder.max_tokens = 6
    text = encoder.encode(["a red circle moves left right the blue square"])
    assert text.mask.sum().item() == 6 and encoder.truncated == 1
    row = encoder._cut(encoder._ids(["a red circle moves left right the blue square"])[0])
    assert row[-1] == (encoder.tokenizer.sep_token_id or encoder.tokenizer.eos_token_id)
    assert "max_tokens=6" in caplog.text
    with pytest.raises(UserError, match="reads at most 6"):
        encoder.check("a red circle moves left right the blue square")


def test_low_precision_features_come_back_as_float32(bert):
    exact = PretrainedEncoder(str(bert), max_tokens=16).encode(CAPTIONS).tokens
    low = PretrainedEncoder(str(bert), max_tokens=16, dtype="bfloat16").encode(CAPTIONS).tokens
    assert low.dtype == torch.float32
    assert 0 < (low - exact).abs().max() < 0.1


def test_more_tokens_than_the_model_reads_is_refused(bert):
    with pytest.raises(UserError, match=r"text_encoder\.max_tokens=128: .* at most 32 tokens"):
        PretrainedEncoder(str(bert), max_tokens=128)


def test_a_tokenizer_of_more_words_than_the_model_knows_is_named(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    word = next(word for word in vocabulary if word.isalpha())
    vocabulary[word] = 2**24
    file.write_text(json.dumps(content))
    encoder = PretrainedEncoder(str(tmp_path / "bert"), max_tokens=16)
    with pytest.raises(UserError, match="the tokenizer makes a token 16777216, and the model knows"):
        encoder.encode([word])


def test_unset_path_says_what_to_give():
    with pytest.raises(UserError, match=r"text_encoder\.path is not set"):
        PretrainedEncoder()


def test_missing_and_incomplete_folders_are_named(tmp_path, bert):
    with pytest.raises(UserError, match="there is no such folder"):
        PretrainedEncoder(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"Pickled weights are not read"):
        PretrainedEncoder(str(tmp_path))


def test_settings_of_a_tokenizer_that_fail_in_use_are_named(tmp_path, bert):
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((bert / "tokenizer_config.json").read_text()) | {"model_max_length": ["long"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is not a readable text encoder with its tokenizer"):
        PretrainedEncoder(str(tmp_path), max_tokens=8)


def test_code_in_the_folder_is_never_run(tmp_path, bert):
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    for more, said in (
        (auto | {"model_type": "strange"}, r"asks for classes of its own \(auto_map\)"),
        (auto, r"asks for classes of its own \(auto_map\)"),  # transformers would take its BERT, without a word
        ({"_attn_implementation": "evil/kernel"}, r"asks for kernels \(_attn_implementation\)"),
        ({"model_type": "strange"}, "is not a readable text encoder"),
        ({"hidden_size": "wide"}, "is not a readable text encoder"),
        ({"num_attention_heads": 0}, "is not a readable text encoder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(plain | more))
        with pytest.raises(UserError, match=said):
            PretrainedEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"tokenizer_config\.json asks for classes of its own"):
        (tmp_path / "words").mkdir()
        (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(auto))
        PretrainedEncoder(str(tmp_path), tokenizer=str(tmp_path / "words"))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read_beside_safetensors_of_another_name(tmp_path, bert):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for file in bert.iterdir():
        (tmp_path / file.name.replace("model.safe", "other.safe")).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), 2))
    index = {"weight_map": {"embeddings.word_embeddings.weight": "pytorch_model.bin"}}
    for name in ("", "pytorch_model.bin.index.json", "model.safetensors.index.json"):
        if name:
            (tmp_path / name).write_text(json.dumps({"metadata": {}} | index))
        with pytest.raises(UserError, match="is not a readable text encoder"):
            PretrainedEncoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cannot_be_fetched_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"text_encoder\.path=some/model is neither a local folder"):
        PretrainedEncoder("some/model")


def test_cache_forgets_the_least_recently_used():
    cache = FeatureCache(capacity=8)
    cache.put((1,), torch.zeros(1))
    cache.put((2,), torch.ones(1))
    assert cache.get((1,)) is not None
    cache.put((3,), torch.ones(1))
    assert cache.get((2,)) is None and cache.get((1,)) is not None and cache.get((3,)) is not None
    assert cache.used == 8


@pytest.mark.network
def test_minilm_knows_paraphrases():
    encoder = PretrainedEncoder("asset:minilm")
    text = encoder.encode(
        [
            "a man is playing a guitar",
            "someone plays a guitar on stage",
            "the stock market fell sharply today",
        ]
    )
    near = torch.cosine_similarity(text.pooled[0], text.pooled[1], dim=0).item()
    far = torch.cosine_similarity(text.pooled[0], text.pooled[2], dim=0).item()
    assert encoder.width == 384
    assert near > 0.5 and far < 0.2
