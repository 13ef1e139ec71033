import pytest

from vidlab.errors import DataError
from vidlab.metrics.base import key_number
from vidlab.metrics.results import MetricResult
from vidlab.metrics.run_scores import ClipScore, add_scores, clip_scores, read_scores, video_name


def rows(step: int, score: float) -> list[ClipScore]:
    return [ClipScore(step, "N2", key, f'a, "{key}"', "judge", score) for key in "ab"]


def test_a_resumed_training_replaces_what_it_does_again(tmp_path):
    path = tmp_path / "evaluation" / "scores.csv"
    for step in (10, 20, 30):
        add_scores(path, rows(step, step / 3))
    add_scores(path, rows(20, 0.1))
    assert read_scores(path) == [*rows(10, 10 / 3), *rows(20, 0.1)]
    path.write_text("step,series\nx,y\n")
    with pytest.raises(DataError, match=r"scores.csv is damaged"):
        read_scores(path)


def test_every_clip_has_its_score():
    numbers = (key_number("b"), key_number("a"))
    whole = MetricResult("fvd", 3.0, False, 2, 2, 8, 1, (32, 32), "none")
    single = MetricResult("judge", 0.5, True, 2, None, 8, 1, (32, 32), "none", keys=numbers, scores=(0.25, 0.75))
    found = clip_scores(7, "N2", {"a": "one", "b": "two"}, {"fvd": whole, "judge": single})
    assert found == [ClipScore(7, "N2", "b", "two", "judge", 0.25), ClipScore(7, "N2", "a", "one", "judge", 0.75)]


def test_names_of_videos():
    assert video_name("val-000017") == "val-000017.mp4"
    odd = [video_name(key) for key in ("a/b", "a?b", "..", "é", "x" * 300)]
    assert len(set(odd)) == 5 and not any("/" in name or name.startswith("..") for name in odd)
    assert odd[0].startswith("a-b-") and max(map(len, odd)) < 120
