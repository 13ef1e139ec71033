"""The prompts and pictures of VBench-I2V, and the names of its videos."""

import json

import pytest

from vidlab.errors import DataError, UserError
from vidlab.lab.evaluation.vbench_i2v import Prompt, main, read_suite

ENTRIES = [
    {"prompt_en": "a cat", "image_name": "a cat.jpg", "dimension": ["i2v_subject", "dynamic_degree"]},
    {"prompt_en": "a cat, camera pans left", "image_name": "a cat.jpg", "dimension": ["camera_motion"]},
    {"prompt_en": "a cat", "image_name": "a cat.jpg", "dimension": ["imaging_quality"]},
]


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "info.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "a cat.jpg").touch()
    return tmp_path


def test_pairs_by_dimension_each_once(suite):
    info, picture = suite / "info.json", suite / "a cat.jpg"
    assert read_suite(info, suite) == [Prompt(picture, "a cat"), Prompt(picture, "a cat, camera pans left")]
    assert read_suite(info, suite, ["camera_motion"]) == [Prompt(picture, "a cat, camera pans left")]
    assert Prompt(picture, "a cat").video(suite, 4).name == "a cat-4.mp4"


def test_what_is_missing_or_damaged_is_said(suite, capsys):
    info = suite / "info.json"
    with pytest.raises(UserError, match="--dimensions i2v: not a VBench dimension"):
        read_suite(info, suite, ["i2v"])
    with pytest.raises(UserError, match="no prompt is of these"):
        read_suite(info, suite, ["scene"])
    with pytest.raises(UserError, match="2 pictures are missing, the first is"):
        read_suite(info, suite / "none")
    for content, message in (("[1]", "expected objects with image_name"), ("{", "cannot be read as JSON")):
        info.write_text(content)
        with pytest.raises(DataError, match=message):
            read_suite(info, suite)
    info.write_text(json.dumps([ENTRIES[0] | {"prompt_en": "../a cat"}]))
    with pytest.raises(DataError, match="can be no file's name"):
        read_suite(info, suite)
    assert main(["last", "--info", "none.json", "--pictures", ".", "--out", "x"]) == 2
    assert "none.json: no such file" in capsys.readouterr().err
