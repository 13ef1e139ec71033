import logging
import re

import pytest
import torch

from vidlab.errors import UserError
from vidlab.text.base import masked_mean, token_mask, with_null
from vidlab.text.words import WordsEncoder, hash_rows, split_words

CAPTIONS = [
    "A red circle moves right.",
    "",
    "two blue squares turn slowly over a green background, then stop",
]


@pytest.fixture
def encoder() -> WordsEncoder:
    torch.manual_seed(0)
    return WordsEncoder(width=32, heads=4, rows=512, max_tokens=24).eval()


def test_words_are_lower_cased_and_punctuation_stands_alone():
    assert split_words("The dog's RED ball, at 3 o'clock!") == [
        *("the", "dog's", "red", "ball", ",", "at", "3", "o'clock", "!")
    ]
    assert split_words("ﬁsh slow-moving a_b") == ["fish", "slow", "-", "moving", "a", "_", "b"]
    assert split_words("  \n") == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只猫在街上走。", [*"一只猫在街上走。"]),
        ("猫がゴールへ3D", [*"猫がゴールへ", "3d"]),
        ("แมวเดิน", ["แ", "ม", "ว", "เ", "ดิ", "น"]),  # the vowel sign stays with its consonant
        ("Кошка идёт, Ёжик", ["кошка", "идёт", ",", "ёжик"]),
        ("قطة تمشي في الشارع", ["قطة", "تمشي", "في", "الشارع"]),
        ("قِطَّة", ["قِطَّة"]),  # with its points
        ("می\u200cخواهم", ["میخواهم"]),  # noqa: RUF001  a joiner is not seen
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("고양이가 걷는다", ["고양이가", "걷는다"]),
        ("e\u0301té l’été “x”", ["été", "l’été", "“", "x", "”"]),  # noqa: RUF001
        ("q\u0308a", ["q\u0308a"]),  # no letter of its own for it
        ("a red 猫x", ["a", "red", "猫", "x"]),
        ("👨\u200d👩 ❤\ufe0f", ["👨", "👩", "❤\ufe0f"]),
    ],
)
def test_words_of_any_script(caption, words):
    assert split_words(caption) == words


def test_ascii_captions_are_split_as_they_always_were():
    every = "".join(map(chr, range(128))) + " don't 'tis o''clock a__b 1,5 x-y"
    before = re.findall(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_", every.casefold())  # noqa: RUF001
    assert split_words(every) == before
    assert split_words(every + " 猫")[:-1] == before, "beside other scripts too"


def test_hashes_are_the_published_keyed_blake2b():
    # python -c "from hashlib import blake2b; print(blake2b(b'red', digest_size=8,
    # key=b'vidlab-0').hexdigest())"
    digests = ("cb547ecbb45ebfd6", "7f11ad24f66628a4")
    expected = tuple(int.from_bytes(bytes.fromhex(digest), "little") % 4096 for digest in digests)
    assert hash_rows("red", hashes=2, rows=4096) == expected


def test_words_of_a_vocabulary_rarely_share_all_rows():
    words = [f"word{i}" for i in range(3000)]
    rows = [frozenset(hash_rows(word, hashes=2, rows=4096)) for word in words]
    # 3000 * 2999 / 2 pairs, each colliding with probability 2 / 4096**2: 0.54 collisions are expected.
    assert len(words) - len(set(rows)) <= 4


def test_shapes_mask_and_padding(encoder):
    text = encoder.encode(CAPTIONS)
    assert text.tokens.shape == (3, 13, 32) and text.pooled.shape == (3, 32)
    assert text.mask.sum(1).tolist() == [7, 1, 13]
    assert text.mask.sum(1).tolist() == [encoder.count_tokens(caption) for caption in CAPTIONS]
    assert (text.tokens[~text.mask] == 0).all()


def test_null_prompt_has_one_token(encoder):
    text = encoder.encode([""])
    assert text.mask.tolist() == [[True]]
    assert text.pooled.abs().sum() > 0


def test_features_do_not_depend_on_batch_mates(encoder):
    together = encoder.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        length = alone.tokens.shape[1]
        torch.testing.assert_close(together.tokens[i, :length], alone.tokens[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], rtol=0, atol=2e-6)


def test_what_makes_pooled_alone_can_be_left_untrained(encoder):
    encoder.freeze_pooled()
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} == {"pool.weight", "pool.bias"}


def test_pooled_is_the_linear_map_of_the_mean_of_real_tokens(encoder):
    text = encoder.encode(CAPTIONS)
    mean = torch.stack([row[mask].mean(0) for row, mask in zip(text.tokens, text.mask, strict=True)])
    torch.testing.assert_close(text.pooled, encoder.pool(mean))


def test_word_order_matters_and_case_does_not(encoder):
    text = encoder.encode(["red then blue", "blue then red", "Red THEN blue"])
    assert (text.pooled[0] - text.pooled[1]).abs().max() > 1e-4
    assert torch.equal(text.pooled[0], text.pooled[2])


def test_without_layers_it_is_words_plus_positions(encoder):
    encoder.layers = torch.nn.ModuleList()
    rows = hash_rows("red", 2, 512)
    word = encoder.table.weight[rows[0]] + encoder.table.weight[rows[1]] + encoder.positions[1]
    expected = encoder.norm(torch.stack([encoder.start + encoder.positions[0], word]))
    torch.testing.assert_close(encoder.encode(["red"]).tokens[0], expected)


def test_every_parameter_learns(encoder):
    encoder.train()
    text = encoder.encode(CAPTIONS)
    (text.tokens.square().sum() + (text.pooled * torch.randn_like(text.pooled)).sum()).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert without == []


def test_it_learns_who_stands_left():
    """Two captions with the same words in another order become separable, so order reaches ``pooled``."""
    torch.manual_seed(0)
    encoder = WordsEncoder(width=32, heads=4, rows=512)
    head = torch.nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    captions = ["a red circle left of a blue square", "a blue square left of a red circle"]
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(head(encoder.encode(captions).pooled), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_long_captions_are_cut_counted_and_warned_of_once(encoder, caplog):
    long = "word " * 30
    with caplog.at_level(logging.WARNING):
        text = encoder.encode([long, "short"])
        encoder.encode([long])
    assert text.mask.sum(1).tolist() == [24, 2]
    assert encoder.truncated == 2
    assert [record.getMessage() for record in caplog.records] == [
        "1 of the 2 captions of this batch cut to text_encoder.max_tokens=24 tokens (the longest has 31). "
        "Further cuts are counted, not shown."
    ]
    assert torch.equal(text.tokens[0], encoder.encode(["word " * 23]).tokens[0])


def test_check_names_the_count_and_the_limit(encoder):
    encoder.check("word " * 23)
    with pytest.raises(UserError, match=r"has 25 tokens; this text encoder reads at most 24"):
        encoder.check("word " * 24)


def test_weights_round_trip(encoder):
    other = WordsEncoder(width=32, heads=4, rows=512, max_tokens=24)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.encode(CAPTIONS).tokens, encoder.encode(CAPTIONS).tokens)


def test_runs_under_bf16_autocast(encoder):
    with torch.autocast("cpu", torch.bfloat16):
        text = encoder.encode(CAPTIONS)
    assert text.tokens.isfinite().all() and text.pooled.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 30, "heads": 4}, r"text_encoder\.heads=4 does not divide text_encoder\.width=30"),
        ({"hashes": 0}, r"text_encoder\.hashes=0: must be at least 1"),
        ({"max_tokens": 1}, r"text_encoder\.max_tokens=1: must be at least 2"),
        ({"depth": -1}, r"text_encoder\.depth=-1: must be at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        WordsEncoder(**arguments)


def test_mask_and_mean_by_hand():
    mask = token_mask([2, 1])
    assert mask.tolist() == [[True, True], [True, False]]
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[5.0, 7.0], [100.0, 100.0]]])
    assert masked_mean(tokens, mask).tolist() == [[2.0, 4.0], [5.0, 7.0]]


def test_encoded_captions_take_the_null_prompt_as_if_encoded_together():
    encoder = WordsEncoder(width=8, depth=1, heads=2, rows=32, max_tokens=8)
    captions = ["a red circle moves to the right", "a square", "two of them"]
    dropped = torch.tensor([True, False, True])
    expected = encoder(["", "a square", ""])
    found = with_null(encoder(captions), dropped, encoder([""]))
    assert torch.equal(found.mask, expected.mask) and found.tokens.shape == expected.tokens.shape
    torch.testing.assert_close(found.tokens, expected.tokens)
    torch.testing.assert_close(found.pooled, expected.pooled)
    none = with_null(encoder(captions), torch.zeros(3, dtype=torch.bool), encoder([""]))
    assert torch.equal(none.tokens, encoder(captions).tokens)
