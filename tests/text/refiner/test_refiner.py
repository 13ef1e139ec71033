import json

import pytest
import torch

from tiny_language_model import WORDS, save_tiny
from vidlab.errors import UserError
from vidlab.text.refiner.fine_tuning import FineTuning, answer_loss
from vidlab.text.refiner.instruction import INSTRUCTION, instructed
from vidlab.text.refiner.language_model import load_language_model
from vidlab.text.refiner.pairs import PromptPair, digest_of, read_pairs, write_pairs
from vidlab.text.refiner.refiner import PromptRefiner

SHORT = [f"{color} {shape}" for color in ("red", "blue") for shape in ("square", "circle")]
PAIRS = [PromptPair(text, f"a {text} moves {'left' if 'red' in text else 'right'} on black", "test") for text in SHORT]
QUICK = FineTuning(rank=16, alpha=32, epochs=30, lr=2e-2, batch_size=4, at_once=2, precision="32-true")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "refiner"
    losses = QUICK.run(load_language_model(str(base)), PAIRS, folder)
    assert losses[0] > 2 and losses[-1] < 0.1 and len(losses) == 30
    return folder


def test_a_fine_tuned_refiner_expands_what_it_was_taught(adapter):
    refiner = PromptRefiner.load(str(adapter), max_new_tokens=12)
    found = refiner.refine([*SHORT, SHORT[0]])
    assert [one.refined for one in found] == [*(pair.refined for pair in PAIRS), PAIRS[0].refined]
    assert [one.original for one in found] == [*SHORT, SHORT[0]] and found[0].refiner == str(adapter)
    assert refiner.refine(SHORT[2:3])[0].refined == found[2].refined  # whatever stands beside it


def test_what_an_adapter_remembers(adapter, base):
    record = json.loads((adapter / "refiner.json").read_text())
    assert record["base"] == str(base) and record["pairs"] == 4 and record["pairs_digest"] == digest_of(PAIRS)
    assert record["settings"]["rank"] == 16 and record["last_loss"] < 0.1
    assert read_pairs(adapter / "pairs.jsonl") == PAIRS
    assert (adapter / "adapter_model.safetensors").is_file() and not list(adapter.glob("*.bin"))


def test_the_model_of_an_adapter_is_found_from_every_folder(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    assert load_language_model(base.name).base == load_language_model(f"./{base.name}").base == str(base)


def test_the_published_recipe_is_the_default():
    """Open-Sora Plan v1.3, section 3.3."""
    tuning = FineTuning()
    assert (tuning.rank, tuning.epochs, tuning.lr, tuning.batch_size) == (64, 1, 1.5e-4, 32)
    assert instructed("a cat", INSTRUCTION).startswith('rewrite the prompt: "a cat" to contain subject description')


def test_the_loss_is_that_of_each_answer_alone(base):
    """Summed negative log likelihood of the answers' tokens, example by example and without padding."""
    language = load_language_model(str(base))
    part = [([5, 6], [7, 8, 2]), ([9, 10, 11, 12, 13], [5, 2]), ([5], [6, 7, 8, 9, 10, 2])]
    expected = 0.0
    with torch.no_grad():
        for asked, answer in part:
            logits = language.model(input_ids=torch.tensor([asked + answer])).logits[0].log_softmax(-1)
            expected -= sum(logits[len(asked) + n - 1, token].item() for n, token in enumerate(answer))
        assert answer_loss(language.model, part, padding=2).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("error:.*is_gradient_checkpointing")  # of peft, which nobody here can fix
def test_parts_of_a_batch_add_up_to_its_gradient(base, tmp_path):
    whole, parts = (
        FineTuning(rank=4, epochs=1, lr=1e-2, batch_size=4, at_once=at_once, precision="32-true").run(
            load_language_model(str(base)), PAIRS * 3, tmp_path / str(at_once)
        )
        for at_once in (4, 1)
    )
    assert whole == pytest.approx(parts, rel=1e-4)


def test_a_chat_template_is_used_where_there_is_one(tmp_path):
    language = load_language_model(str(save_tiny(tmp_path / "chat", chat=True)))
    assert language.conversation("red square") == [3, *(5 + WORDS.index(word) for word in ("red", "square")), 4]
    assert language.conversation("red square", chat=False)[0] != 3


def test_a_model_that_was_not_tuned_is_told_the_instruction(base):
    refiner = PromptRefiner.load(str(base), max_new_tokens=4)
    assert refiner.instruction == INSTRUCTION and refiner.refine(["red square"])[0].original == "red square"


def test_what_is_refused(base, adapter, tmp_path):
    with pytest.raises(UserError, match="an empty prompt"):
        PromptRefiner.load(str(adapter)).refine(["red square", " "])
    with pytest.raises(UserError, match=r"refiner\.tuning\.batch_size=32: there are 4 pairs, not enough for one batch"):
        FineTuning().run(load_language_model(str(base)), PAIRS, tmp_path / "x")
    with pytest.raises(UserError, match="has 11 tokens"):
        FineTuning(max_tokens=8, batch_size=4).run(load_language_model(str(base)), PAIRS, tmp_path / "x")
    with pytest.raises(UserError, match=r"refiner\.tuning\.rank=0"):
        FineTuning(rank=0)
    with pytest.raises(UserError, match=r"is an adapter, and another one on top.*refiner\.model=" + str(base)):
        QUICK.run(load_language_model(str(adapter)), PAIRS, tmp_path / "x")
    with pytest.raises(UserError, match=r"refiner\.tuning\.targets=\['q_pro'\]: .*not found"):
        FineTuning(targets=["q_pro"], batch_size=4).run(load_language_model(str(base)), PAIRS, tmp_path / "x")
    with pytest.raises(UserError, match="there is no such folder"):
        load_language_model("/no/such/folder")
    with pytest.raises(UserError, match=r"needs config\.json"):
        load_language_model(str(tmp_path))
    for name in ("model.Q4.gguf", "model.Q8.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds model\.Q4\.gguf and model\.Q8\.gguf; leave one"):
        load_language_model(str(tmp_path))


def test_an_adapter_that_is_no_plain_lora_is_refused(adapter, tmp_path):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for changes, message in (
        ({"peft_type": "LOHA"}, "is of type LOHA"),
        ({"use_dora": True}, "asks for use_dora"),
        ({"r": 3}, "does not fit its model"),
    ):
        broken = tmp_path / next(iter(changes))
        broken.mkdir()
        for file in adapter.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "adapter_config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(UserError, match=message):
            load_language_model(str(broken))
    (broken / "adapter_config.json").write_text(json.dumps(settings))
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled adapters are not read"):
        load_language_model(str(broken))


def test_files_of_pairs(tmp_path):
    odd = [*PAIRS, PromptPair("a line\u2028and another", "two\x85lines")]  # which end no line of a file
    assert read_pairs(write_pairs(tmp_path / "pairs.jsonl", odd)) == odd
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "caf\xe9", "refined": "y"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "x", "refined": "y"}\n{"prompt": "x"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_pairs(tmp_path / "broken.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
