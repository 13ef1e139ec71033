from pathlib import Path

import pytest

from vidlab.chat.journal import Answer, Usage
from vidlab.curation.captions.captioned_data import earlier_captions, write_captions
from vidlab.curation.captions.captioner import Caption, Described, SourceClip
from vidlab.curation.captions.cleaning import cleaned
from vidlab.curation.captions.statistics import BINS, length_statistics, table_of
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.index_writer import write_index
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("This video shows a dog running.", "A dog running."),
        ("The video features a cat. The video then shows a bird.", "A cat. A bird."),
        ("In this video, a man walks.", "A man walks."),
        ("In the video we see two boats.", "Two boats."),
        ("The image depicts the sea", "The sea"),
        ("This is a short clip", "This is a short clip"),
        ("The video is a close-up of a leaf.", "A close-up of a leaf."),
        ("The video is dark.", "The video is dark."),
        ("Sure! Here is a detailed description of the video: A red car.", "A red car."),
        ("A video camera lies on a table.", "A video camera lies on a table."),
        ("A man shows the video to a child.", "A man shows the video to a child."),
        ("A\n  dog  barks.", "A dog barks."),
        ("The short video clip begins with a sunrise. It ends.", "A sunrise. It ends."),
    ],
)
def test_what_stands_before_the_content_goes(written, wanted):
    assert cleaned(written) == wanted


def test_lengths_are_counted_by_source():
    captions = [
        [Caption("one two three four", "fake a"), Caption("one", "fake b", written="The video shows one")],
        [Caption(" ".join(["word"] * 12), "fake a", cut=True)],
    ]
    first, second = length_statistics(captions)
    assert (first.source, first.captions, first.clips, first.mean, first.median) == ("fake a", 2, 2, 8.0, 8.0)
    assert (first.shortest, first.longest, first.cut, first.cleaned) == (4, 12, 1, 0)
    assert first.histogram == (1, 0, 1, *[0] * (len(BINS) - 3))
    assert (second.clips, second.cleaned) == (1, 1)
    assert "| fake a | 2 | 2 | 8.0 | 8 |" in table_of([first, second])


def test_captions_with_any_line_end_are_read_again_and_a_damaged_file_is_named(tmp_path):
    row = ClipRow("a", "a.mp4", 0, 99, 8, 32, 48, 8.0, 1.0, ("one",), "train", "film", None)
    (tmp_path / "data").mkdir()
    write_index(tmp_path / "data", [row], {})
    index = ClipIndex.open(tmp_path / "data")
    caption = Caption("a\u2028b\x85c", "someone")  # line ends of Unicode, which JSON leaves as they are
    clip = SourceClip(row, tmp_path, DecodeLimits())
    write_captions(index, "data", [Described(clip, [caption])], tmp_path / "told", keep=False)
    told = ClipIndex.open(tmp_path / "told")
    assert earlier_captions(told) == {"a": [caption]} and earlier_captions(index) == {}
    file = tmp_path / "told" / "captions.jsonl"
    file.write_text(file.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(DataError, match=r"captions\.jsonl is damaged"):
        earlier_captions(told)


def test_what_a_model_answered_is_a_caption_on_one_line():
    row = ClipRow("a", "a.mp4", 0, 99, 8, 32, 48, 8.0, 1.0, ("one",), "train", "film", None)
    clip = SourceClip(row, Path(), DecodeLimits())
    texts = ("This video shows a\n dog.", " ")
    answers = [Answer(text, "m", Usage()) for text in texts]
    found = [Described.by_model(clip, answer, "m at h", clean) for answer in answers for clean in (True, False)]
    assert [one.captions for one in found] == [
        [Caption("A dog.", "m at h", "This video shows a\n dog.")],
        [Caption("This video shows a dog.", "m at h", "This video shows a\n dog.")],
        [],
        [],
    ]
    assert [one.reason for one in found] == ["", "", "an empty answer", "an empty answer"]
