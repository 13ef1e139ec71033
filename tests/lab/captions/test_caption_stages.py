"""stage=caption and stage=dsg against a fake server that knows what the rendered clips show."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from chat.fake_server import KEY, FakeServer
from vidlab.curation.captions.captioned_data import source_clips
from vidlab.curation.captions.captioner import as_png
from vidlab.data.moving_shapes.words import SHAPE_WORDS
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import UserError
from vidlab.lab.captions.caption import open_data
from vidlab.lab.captions.stages import TEXT_STAGES
from vidlab.lab.cli.hydra_main import instantiate

CONF = Path(__file__).resolve().parents[3] / "conf"
CLIPS = ("data.source.train_clips=20", "data.source.val_clips=4", "data.frames=4", "data.num_workers=0")
SHAPES = {word: shape for shape, synonyms in SHAPE_WORDS.items() for word in synonyms}
OBJECT = re.compile(rf"(red|green|blue|yellow|orange|magenta|cyan|white) ({'|'.join(map(re.escape, SHAPES))})\b")


def configured(*words: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("curate", list(words))


def run(stage: str, *words: str) -> str:
    return TEXT_STAGES[stage](configured(f"stage={stage}", *CLIPS, *words))


def objects_in(text: str) -> set[str]:
    """What a caption of moving shapes speaks of, in the words of the factors."""
    return {f"{color} {SHAPES[shape]}" for color, shape in OBJECT.findall(text)}


@pytest.fixture(scope="module")
def clips():
    data = open_data(configured(*CLIPS))
    return list(source_clips(ClipIndex.open(data.source.prepare()), data.limits))


@pytest.fixture(scope="module")
def shown(clips):
    """The true objects of each frame, by the bytes of its picture."""
    found: dict[str, set[str]] = {}
    for clip in clips:
        assert clip.row.factors is not None
        for frame in clip.frames(4):
            objects = {f"{one.color} {one.shape}" for one in clip.row.factors.objects}
            found[sha256(as_png(frame, 512)).hexdigest()] = objects
    return found


@pytest.fixture
def server(shown, monkeypatch):
    def answer(model, text, pictures):
        """Three fake models: one describes, one lists objects, one looks."""
        there = [shown[sha256(picture).hexdigest()] for picture in pictures]
        if model == "fake-captioner":
            return f"This video shows a {min(there[0])} that moves."
        if model == "fake-llm":
            caption = text.split("Caption: ")[1].split("\n")[0]
            return json.dumps([{"object": o, "question": f"Is there a {o}?"} for o in sorted(objects_in(caption))])
        assert model == "fake-mllm" and len(pictures) == 1
        if "purple" in text:
            return "I cannot tell"
        return "Yes" if any(o in there[0] for o in objects_in(text)) else "No"

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(answer) as made:
        yield made


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def at(server: FakeServer, *words: str) -> tuple[str, ...]:
    models = ("endpoint.model=fake-captioner", "dsg.language.model=fake-llm", "dsg.vision.model=fake-mllm")
    return (f"endpoint.url={server.url}", "endpoint.backoff=0.001", "dsg.frames=4", *models, *words)


def sidecar(folder: Path, clips, lies: int) -> Path:
    """Captions beside the clips; the first ``lies`` of them speak of one object that no frame shows."""
    for number, clip in enumerate(clips):
        true = clip.row.captions[0]
        lie = next(o for o in ("red circle", "blue cross", "white square") if o not in objects_in(true))
        text = f"{true}, beside a {lie}" if number < lies else true
        folder.mkdir(exist_ok=True)
        (folder / f"{clip.row.key}.txt").write_text(text + "\n")
    return folder


def test_hallucinated_captions_are_found_and_true_ones_pass(server, clips, tmp_path):
    lying = sidecar(tmp_path / "fake-captions", clips, lies=6)
    words = at(server, "captioner=data", "captioner@against=sidecar", f"against.path={lying}", "dsg.clips=24")
    told = run("dsg", *words)
    found = json.loads(next(tmp_path.glob("dsg/*/dsg.json")).read_text())
    true, false = found["scores"]["data"], found["scores"]["fake-captions"]
    mentioned = sum(len(objects_in(clip.row.captions[0])) for clip in clips)
    assert (true["objects"], true["per_object"]["hits"], true["per_caption"]["percent"]) == (mentioned, 0, 0.0)
    assert (false["objects"], false["per_object"]["hits"], false["per_caption"]["hits"]) == (mentioned + 6, 6, 6)
    assert false["per_caption"]["percent"] == 25.0 and true["undecided"] == false["undecided"] == 0
    planted = {clip.row.key for clip in clips[:6]}
    bad = {one["key"] for one in found["captions"]["fake-captions"] for o in one["objects"] if o["state"] != "seen"}
    assert bad == planted
    assert "DSG-Video_s, fake-captions minus data: +25.0 points" in told
    assert "questions by fake-llm" in told and "answers by fake-mllm" in told
    # a second run asks nobody
    asked = len(server.asked)
    assert run("dsg", *words).splitlines()[:4] == told.splitlines()[:4] and len(server.asked) == asked
    assert all(KEY not in file.read_text("latin-1") for file in tmp_path.rglob("*") if file.is_file())
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_numbers_that_cannot_work_are_refused_before_anybody_is_asked():
    for word, least in (("clips=0", 1), ("frames=x", 1), ("longest_side=8", 16)):
        with pytest.raises(UserError, match=rf"dsg\.{word}: it must be a whole number of {least} or more"):
            run("dsg", f"dsg.{word}")


def test_answers_that_are_neither_are_counted_apart(server, clips, tmp_path):
    folder = tmp_path / "fake-odd"
    for number, clip in enumerate(clips):
        folder.mkdir(exist_ok=True)
        (folder / f"{clip.row.key}.txt").write_text("a purple cow\n" if number else f"{clip.row.captions[0]}\n")
    server_answer = server.answer
    server.answer = lambda model, text, pictures: (
        "I see a cow" if model == "fake-llm" and "purple" in text else server_answer(model, text, pictures)
    )
    run("dsg", *at(server, "captioner=sidecar", f"captioner.path={folder}", "dsg.clips=24"))
    scores = json.loads(next(tmp_path.glob("dsg/*/dsg.json")).read_text())["scores"]["fake-odd"]
    assert scores["unread_captions"] == 23 and scores["per_caption"]["total"] == 1
    server.answer = lambda model, text, pictures: (
        json.dumps([{"object": "cow", "question": "Is there a purple cow?"}])
        if model == "fake-llm"
        else server_answer(model, text, pictures)
    )
    run("dsg", *at(server, "captioner=sidecar", f"captioner.path={folder}", "dsg.clips=24", "folder=second"))
    scores = json.loads((tmp_path / "second" / "dsg.json").read_text())["scores"]["fake-odd"]
    assert (scores["undecided"], scores["unread_answers"], scores["objects"]) == (24, 24 * 4, 0)
    assert scores["per_object"]["percent"] is None and scores["per_caption"]["total"] == 0


def test_captions_by_a_server_become_a_data_set(server, clips, tmp_path):
    told = run("caption", *at(server, "captioner=endpoint", "captioner.frames=2", "endpoint.prompt_price=1"))
    (folder,) = tmp_path.glob("captions/*")
    assert "fake-captioner at 127.0.0.1" in told and "24 calls" in told and "fake-captioner" in folder.name
    small = ("data.frames=4", "data.num_workers=0", "data.val_clips=4")
    data = instantiate(configured("data=captioned", f"data.path={folder}", *small).data, "data")
    assert (len(data.data.train), len(data.data.val)) == (20, 4)
    for position, clip in enumerate(clips[:20]):
        row, seen = data.data.train.row(position), clip.row.factors.objects[0]
        assert row.key == clip.row.key and row.captions == (f"A {seen.color} {seen.shape} that moves.",)
    assert all(caption.endswith("that moves.") for caption in data.train_dataloader().dataset[0].captions)
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert lines[0]["captions"][0]["written"].startswith("This video shows") and len(lines) == 24
    assert json.loads((folder / "statistics.json").read_text())[0]["cleaned"] == 24
    # what is there stays, with its source; the second time nobody is asked
    asked = len(server.asked)
    again = ("captioner=endpoint", "captioner.frames=2", "caption.keep=true", f"folder={folder}", "endpoint.retries=0")
    run("caption", *at(server, *again))
    kept = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
    assert [one["source"].split(" ")[0] for one in kept["captions"]] == ["data", "fake-captioner"]
    assert len(server.asked) == asked


def test_a_server_that_goes_away_loses_nothing(server, tmp_path):
    words = at(server, "captioner=endpoint", "captioner.frames=1", "endpoint.retries=0", "endpoint.at_once=1")
    answer, left = server.answer, [True] * 7

    def leaving(*asked):
        return answer(*asked) if left and left.pop() else (503, "gone")

    server.answer = leaving
    with pytest.raises(UserError, match="Every answer so far is kept"):
        run("caption", *words)
    before, server.answer = len(server.asked), answer
    assert "24 clips" in run("caption", *words)
    assert len(server.asked) - before == 24 - 7


def test_clips_that_are_files_have_a_list_in_the_format_of_open_sora_plan(clips, tmp_path):
    from vidlab.data.video import encode

    (tmp_path / "videos").mkdir()
    for number, clip in enumerate(clips[:4]):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(encode(clip.frames(4), 8))
        (tmp_path / "videos" / f"{number}.txt").write_text("a clip\n")
        (tmp_path / f"{number}.json").write_text(json.dumps({"cap": [f"fake caption {number}", "another"]}))
    videos = f"data.path={tmp_path / 'videos'}"
    TEXT_STAGES["caption"](configured("data=folder", videos, "captioner=sidecar", f"captioner.path={tmp_path}"))
    (made,) = tmp_path.glob("captions/*")
    cfg = configured("data=open_sora_plan", videos, f"data.source.annotation={made / 'annotation.json'}")
    index = ClipIndex.open(instantiate(cfg.data, "data").source.prepare())
    assert [index.row(place).captions for place in range(4)] == [(f"fake caption {n}", "another") for n in range(4)]
