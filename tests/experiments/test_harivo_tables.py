"""Table A1 and the prompts of HARIVO's experiments."""

import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "experiments" / "harivo"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("jarque_bera", FOLDER / "jarque_bera.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_statistic_by_hand(table):
    # of -1, 0, 0, 1: mean 0, variance 1/2, no skewness, kurtosis (1/2) / (1/4) = 2, excess -1
    assert table.jarque_bera(torch.tensor([[-1.0, 0.0, 0.0, 1.0]])).item() == pytest.approx(4 / 6 * 1 / 4)
    # of 0, 0, 0, 4: mean 1, variance 3, third moment (27 - 3) / 4 = 6, fourth (81 + 3) / 4 = 21
    expected = 4 / 6 * (6**2 / 3**3 + (21 / 9 - 3) ** 2 / 4)
    assert table.jarque_bera(torch.tensor([[0.0, 0.0, 0.0, 4.0]])).item() == pytest.approx(expected)


def test_marginals_are_standard_normal_and_frames_are_correlated_by_half(table):
    noise = table.mixed_noise(50, 24, 1024, 1.0, torch.Generator().manual_seed(0))
    assert noise.mean().abs() < 0.01 and noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise[:, 0] * noise[:, 23]).mean().item() == pytest.approx(0.5, abs=0.02)
    # a frame by itself passes as often as it should
    assert (table.jarque_bera(noise[:, :6].flatten(0, 1)) < table.CHI_SQUARED_95).float().mean() > 0.9


def test_table_a1(table):
    correlated, independent = (table.accepted(3000, 24, 1024, alpha) for alpha in (1.0, 0.0))
    assert 0.60 < correlated < 0.66  # published: 63.01 %; three standard errors of 3000 trials are 2.6 %
    assert 0.935 < independent < 0.965  # published: 94.42 %
    assert table.limit(24, 1.0) == pytest.approx(0.6179, abs=2e-3)
    assert table.limit(24, 0.0) == pytest.approx(0.95, abs=1e-3)


def test_a_hundred_prompts_twenty_to_a_theme():
    with (FOLDER / "prompts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["category"] for row in rows) == dict.fromkeys(
        ("human", "animals", "objects", "nature", "imaginary"), 20
    )
    assert len({row["prompt"] for row in rows}) == 100
    assert all(row["prompt"].endswith(".") and row["prompt"][0].isupper() for row in rows)
