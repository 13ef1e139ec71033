"""VideoPhy's scores, from files in the form in which its evaluator writes them."""

import csv

import pytest

from vidlab.errors import DataError, UserError
from vidlab.metrics.videophy.scores import read_files, report, videophy_scores

ASKED = "The following is a conversation.\nHuman: <|video|>\nHuman: {}\nAI: "
SA = ASKED.format('Does this video entail the description: "Shoe squishes a bug."?')
PC = ASKED.format("Does this video follow the physical laws?")
# the published example's probabilities
PHYSICAL = {"a.mp4": 0.94140625, "b.mp4": 0.5, "c.mp4": 0.22265625, "d.mp4": 0.1328125}
SEMANTIC = {"a.mp4": 0.9, "b.mp4": 0.1, "c.mp4": 0.8, "d.mp4": 0.7}


def write(path, rows, question):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([video, question, score] for video, score in rows.items())
    return path


def test_shares_by_hand_whatever_the_order_of_the_files(tmp_path):
    files = [write(tmp_path / "pc.csv", PHYSICAL, PC), write(tmp_path / "sa.csv", SEMANTIC, SA)]
    found = read_files(files)
    scores = videophy_scores(found["SA"], found["PC"])
    assert (scores.semantic.value, scores.physical.value, scores.both.value) == (0.75, 0.5, 0.25)
    assert scores.mean == 0.625 and scores.videos == 4
    assert "SA = 1            75.0   [" in report(scores) and "mean of SA, PC    62.5" in report(scores)


def test_the_mean_is_that_of_published_rows():
    # STIV, Table 19: M-512 has PC 43, SA 59 and 51 on average
    videos = [f"{n}.mp4" for n in range(100)]
    semantic = {video: float(n < 59) for n, video in enumerate(videos)}
    physical = {video: float(n < 43) for n, video in enumerate(videos)}
    assert videophy_scores(semantic, physical).mean == pytest.approx(0.51)


def test_files_that_are_none_or_of_other_videos_are_refused(tmp_path):
    sa, pc = write(tmp_path / "sa.csv", SEMANTIC, SA), write(tmp_path / "pc.csv", PHYSICAL, PC)
    with pytest.raises(UserError, match="SA is given twice"):
        read_files([sa, sa])
    with pytest.raises(UserError, match="PC is missing"):
        read_files([sa])
    with pytest.raises(UserError, match="no such file"):
        read_files([tmp_path / "none.csv"])
    with pytest.raises(UserError, match=r"1 have only one of them, first d\.mp4"):
        videophy_scores(SEMANTIC, {name: value for name, value in PHYSICAL.items() if name != "d.mp4"})
    pc.write_text(pc.read_text() * 2)
    with pytest.raises(DataError, match=r"a\.mp4 is there twice"):
        read_files([pc])
    for content in ("", "a,b\n", "a.mp4,what is this?,0.5\n"):
        sa.write_text(content)
        with pytest.raises(DataError, match="not a result of VideoPhy"):
            read_files([sa])
    with pytest.raises(DataError, match=r"a\.mp4 has the score 1\.5"):
        read_files([write(sa, {"a.mp4": 1.5}, SA)])
