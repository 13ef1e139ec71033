"""stage=pairs and stage=refiner: pairs of clips and by a fake server, and what is refused before anything is asked."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from chat.fake_server import FakeServer
from vidlab.errors import UserError
from vidlab.lab.captions.stages import TEXT_STAGES
from vidlab.text.refiner.pairs import PromptPair, read_pairs

CONF = Path(__file__).resolve().parents[3] / "conf"
CLIPS = ("data.source.train_clips=4", "data.source.val_clips=2", "data.frames=4", "data.num_workers=0")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(stage: str, *words: str) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("curate", [f"stage={stage}", *CLIPS, *words])
    return TEXT_STAGES[stage](cfg)


def test_pairs_of_rendered_clips(tmp_path):
    told = run("pairs", "pairs.count=3")
    pairs = read_pairs(tmp_path / "refiners" / "pairs.jsonl")
    assert "3 pairs" in told and "stage=refiner pairs.path=refiners/pairs.jsonl" in told
    assert len(pairs) == 3 and all(pair.source == "moving_shapes" for pair in pairs)
    assert all(len(pair.prompt) < len(pair.refined) for pair in pairs)


def test_pairs_by_a_server(tmp_path):
    (tmp_path / "short.txt").write_bytes("\ufeffa cat\r\n\r\na  cat\na dog\n".encode())
    words = ("pairs.prompts=short.txt", "endpoint.model=fake-llm", "pairs.instruction='Expand: {prompt}'")
    with FakeServer(lambda model, text, pictures: f"This video shows {text[8:]} that runs.") as server:
        run("pairs", f"endpoint.url={server.url}", *words)
        asked = [body["messages"][0]["content"] for body in server.asked]
    assert sorted(asked) == ["Expand: a cat", "Expand: a dog"]
    source = f"fake-llm at {server.url[7:-3]}"
    assert read_pairs(tmp_path / "refiners" / "pairs.jsonl") == [
        PromptPair("a cat", "A cat that runs.", source), PromptPair("a dog", "A dog that runs.", source)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pairs.count=0"], "pairs.count=0: it must be a whole number of 1 or more"),
        (["pairs.count=some"], "pairs.count=some: it must be a whole number"),
        (["pairs.prompts=none.txt"], "pairs.prompts=none.txt: there is no such file"),
        (["pairs.prompts=latin.txt"], "pairs.prompts=latin.txt is not UTF-8 text"),
        (["pairs.prompts=good.txt", "pairs.instruction=expand"], r"pairs.instruction has no \{prompt\} in it"),
    ],
)
def test_what_stage_pairs_refuses(tmp_path, words, message):
    (tmp_path / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    (tmp_path / "good.txt").write_text("a cat\n")
    with pytest.raises(UserError, match=message):
        run("pairs", "endpoint.url=http://127.0.0.1:9/v1", "endpoint.model=fake-llm", *words)


def test_stage_refiner_refuses_too_few_pairs_before_it_loads_a_model():
    with pytest.raises(UserError, match=r"refiner\.tuning\.batch_size=32: there are 4 pairs"):
        run("refiner", "refiner.model=/no/such/model")
