"""Frames between given ones: what linear interpolation, repetition and a model leave as error."""

import pytest
import torch

from vidlab.lab.evaluation.in_between import errors_of, table_of, without_a_model


def test_baselines_and_errors_by_hand():
    truth = torch.tensor([0.0, 1, 4, 9, 16, 25]).reshape(1, 1, 6, 1, 1).expand(2, 3, 6, 2, 2)
    found = without_a_model(truth, 2)
    assert found["linear interpolation"][0, 0, :5, 0, 0].tolist() == [0, 2, 4, 10, 16]
    assert found["the frame before"][0, 0, :, 0, 0].tolist() == [0, 0, 4, 4, 16, 16]
    errors = errors_of(truth, found, 2)  # frames 1 and 3: frame 5 has no given one after it
    assert errors["linear interpolation"].tolist() == [1.0, 1.0]
    assert errors["the frame before"].tolist() == pytest.approx([(1 + 25) / 2] * 2)
    thirds = without_a_model(truth, 3)["linear interpolation"][0, 0, :4, 0, 0]
    assert thirds.tolist() == pytest.approx([0, 3, 6, 9])


def test_the_table_tells_how_far_the_model_lies_below():
    text = table_of({"the model": [0.1, 0.3], "linear interpolation": [0.2, 0.5]})
    assert "the model             0.20000" in text
    assert "linear interpolation  0.35000   the model's minus this -0.15000 [-0.78531, +0.48531]" in text  # t = 12.706
