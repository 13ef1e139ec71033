import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vidlab.data.video import text_labels as labels
from vidlab.data.video.text_labels import Label

needs_dejavu = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="DejaVu comes with matplotlib")


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(labels, "_of_the_system", tuple)
    labels._best_font.cache_clear()
    yield
    labels._best_font.cache_clear()


def drawn(label: Label) -> np.ndarray:
    image = Image.new("RGB", (400, 20), (255, 255, 255))
    label.draw(ImageDraw.Draw(image), (2, 1), label.text, (0, 0, 0))
    return np.asarray(image)


def test_latin_labels_are_drawn_in_pillows_own_font():
    image = Image.new("RGB", (400, 20), (255, 255, 255))
    ImageDraw.Draw(image).text((2, 1), "a red ball, 3 o'clock", fill=(0, 0, 0), font=ImageFont.load_default(14))
    assert (drawn(Label("a red ball, 3 o'clock")) == np.asarray(image)).all()


@needs_dejavu
def test_letters_of_other_scripts_differ_from_each_other(no_system_fonts, recwarn):
    pictures = [drawn(Label(letter)).tobytes() for letter in "ЖЁαעفğ→"]
    assert len(set(pictures)) == len(pictures)
    assert not recwarn.list


def test_characters_without_a_font_are_written_by_code_point_and_said(no_system_fonts):
    with pytest.warns(UserWarning, match="by their code points, such as U\\+732B"):
        label = Label("一猫 runs")
    assert label.text.split() == ["U+4E00", "U+732B", "runs"]
    assert label.lines(110) == ["U+4E00 U+732B", "runs"]


def test_a_font_of_the_system_is_taken_when_it_has_the_characters(no_system_fonts, monkeypatch):
    font = ImageFont.load_default(14)
    monkeypatch.setattr(labels, "_fonts", lambda: iter([ImageFont.load_default(14), font]))
    monkeypatch.setattr(labels, "_has", lambda which, char: which is font or char.isascii())
    label = Label("猫 a")
    assert label.font is font and label.text == "猫 a"


def test_what_is_not_seen_is_left_out_and_lines_end_where_they_must():
    assert Label("a\x1b[31m\u202eb\n\tc\ud800").text == "a[31mb c"
    lines = Label("x" * 100 + " end").lines(200)
    assert "".join(lines) == "x" * 100 + " end" and len(lines) > 3
    assert all(labels._default_font().getlength(line) <= 200 for line in lines)
    assert Label("").lines(200) == [""]
