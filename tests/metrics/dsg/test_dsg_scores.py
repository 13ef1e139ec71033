import pytest

from vidlab.metrics.dsg.answers import parse_answer
from vidlab.metrics.dsg.comparison import differences, table_of
from vidlab.metrics.dsg.dsg_video import middle_first
from vidlab.metrics.dsg.questions import ObjectQuestion, parse_questions
from vidlab.metrics.dsg.scores import CheckedCaption, CheckedObject, dsg_scores, object_rate, wilson


def caption(key: str, *answers: tuple[bool | None, ...]) -> CheckedCaption:
    objects = tuple(CheckedObject(f"object {n}", one) for n, one in enumerate(answers))
    return CheckedCaption(key, "a caption", objects)


def test_an_object_is_hallucinated_when_no_frame_has_it():
    assert CheckedObject("x", (False, False, True)).state == "seen"
    assert CheckedObject("x", (False, False)).state == "hallucinated"
    assert CheckedObject("x", (False, None)).state == "undecided"
    assert CheckedObject("x", (None, True)).state == "seen"
    assert CheckedObject("x", ()).state == "undecided"


def test_scores_by_hand():
    """5 objects are decided, 2 of them hallucinated; 2 of the 3 captions of which it is known have one."""
    scores = dsg_scores(
        [
            caption("a", (True,), (False, True)),
            caption("b", (False, False), (True,)),
            caption("c", (False, False), (None, False)),  # hallucinates, whatever the second object is
            caption("d", (None, False)),
            CheckedCaption("e", "text", None, "unread"),
        ]
    )
    assert (scores.objects, scores.per_object.hits, scores.per_object.percent) == (5, 2, 40.0)
    assert (scores.per_caption.hits, scores.per_caption.total) == (2, 3)
    assert scores.per_caption.percent == pytest.approx(200 / 3)
    assert (scores.undecided, scores.unread_answers, scores.unread_captions, scores.captions) == (2, 2, 1, 5)


@pytest.mark.parametrize(("objects", "hallucinated", "percent"), [(1249, 80, 6.4), (1911, 101, 5.3)])
def test_the_published_shares_are_whole_counts(objects, hallucinated, percent):
    """STIV, Table 11: DSG-Video_i of both captioners, from the total objects that stand beside it."""
    rate = object_rate([1] * hallucinated + [0] * (objects - hallucinated), [1] * objects)
    assert round(rate.percent, 1) == percent


def test_wilson_by_hand():
    """24 of 100, DSG-Video_s of FCapLLM: (.24 + .019207) / 1.038415 -+ 1.959964 x .043818 / 1.038415."""
    low, high = wilson(0.24, 100)
    assert (low, high) == pytest.approx((0.16692, 0.33233), abs=2e-5)
    assert wilson(0.0, 50)[0] == 0 and wilson(0.0, 50)[1] == pytest.approx(0.07135, abs=1e-5)


def test_objects_of_one_caption_count_as_what_they_are():
    """All or none of 10 objects of a caption are right: 20 captions tell as much as 20 objects."""
    alike = object_rate([10] * 5 + [0] * 15, [10] * 20)
    drawn = object_rate([3, 2, 3, 2] * 5, [10] * 20)
    assert alike.percent == drawn.percent == 25
    # the variance of the ratio over captions against .25 x .75 / 200 of objects drawn one by one
    effect = (20 / 19 * (5 * 7.5**2 + 15 * 2.5**2) / 200**2) / (0.25 * 0.75 / 200)
    assert effect == pytest.approx(10.5263, abs=1e-4)
    assert (alike.interval.low, alike.interval.high) == pytest.approx([100 * x for x in wilson(0.25, 200 / effect)])
    assert (drawn.interval.low, drawn.interval.high) == pytest.approx([100 * x for x in wilson(0.25, 200)])


def test_two_captioners_are_compared_clip_by_clip():
    bad = [caption(f"{n:03d}", (True,), (n % 2 == 0,)) for n in range(40)]
    good = [caption(f"{n:03d}", (True,), (True,)) for n in range(40)]
    by_object, by_caption = differences(bad, good)
    assert (by_object.value, by_caption.value) == (-25.0, -50.0)
    assert by_object.sure and by_caption.sure and -70 < by_caption.interval.low < by_caption.interval.high < -30
    same, _ = differences(bad, bad)
    assert same.value == 0 and not same.sure and same.interval.low == same.interval.high == 0
    assert differences(bad, [])[0].value is None
    assert "| fake captioner | 80 | 25.0 [" in table_of({"fake captioner": bad})


def test_lists_of_objects_are_read_or_not():
    text = 'Here:\n```json\n[{"object": "Dog", "question": "A dog?"}, {"object": "dog", "question": "Or a dog?"}]```'
    assert parse_questions(text) == [ObjectQuestion("Dog", "A dog?")]
    assert parse_questions("[]") == []
    for broken in ("a dog and a cat", '[{"object": "dog"}]', '["dog"]', "[", '[{"object": "", "question": "?"}]', ""):
        assert parse_questions(broken) is None


def test_answers_are_yes_no_or_neither():
    assert [parse_answer(text) for text in ("Yes.", "no", "**No**, there is not.", "YES, a red one")] == [
        True, False, False, True,
    ]  # fmt: skip
    assert [parse_answer(text) for text in ("", "I cannot tell", "Yes and no", "nothing", "yesterday")] == [None] * 5


def test_frames_in_the_middle_come_first():
    assert middle_first([b"0", b"1", b"2", b"3"]) == [b"1", b"2", b"0", b"3"]
    assert middle_first([b"0", b"1", b"2"]) == [b"1", b"0", b"2"]
