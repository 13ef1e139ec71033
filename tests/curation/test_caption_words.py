import pytest

from vidlab.curation.captions.captioner import Caption
from vidlab.curation.captions.cleaning import cleaned
from vidlab.curation.captions.statistics import BINS, length_statistics, table_of


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
