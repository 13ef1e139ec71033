"""The shape annotations of vidlab are checked while the tests run; these would pass silently if they were not."""

import jaxtyping
import pytest
import torch

import shape_checks
from vidlab.clip import ClipBatch, DenoiserInput
from vidlab.diffusion.time_samplers import LogitNormal
from vidlab.layers.kernels import auto


def test_a_wrong_shape_of_an_argument_raises():
    heads = torch.zeros(1, 4, 2, 8)
    assert auto(heads, heads, heads).shape == heads.shape
    with pytest.raises(jaxtyping.TypeCheckError, match="k"):
        auto(heads, torch.zeros(1, 4, 3, 8), heads)


def test_a_wrong_shape_in_a_record_raises():
    one = {"captions": ("",), "keys": ("a",), "epochs": (0,), "number": 0, "fps": (8.0,)}
    assert len(ClipBatch(torch.zeros(1, 3, 2, 4, 4), **one)) == 1
    with pytest.raises(jaxtyping.TypeCheckError, match="content"):
        ClipBatch(torch.zeros(1, 4, 2, 4, 4), **one)


def test_axes_of_one_record_agree():
    latents = torch.zeros(2, 3, 4, 5, 6)
    for levels in (torch.zeros(2), torch.zeros(2, 4)):
        DenoiserInput(latents, t=levels, embedded_t=levels)
    for levels in (torch.zeros(3), torch.zeros(2, 5)):
        with pytest.raises(jaxtyping.TypeCheckError):
            DenoiserInput(latents, t=levels, embedded_t=levels)


def test_an_int_is_a_float_and_a_string_is_not():
    assert LogitNormal(mean=0, std=1) == LogitNormal(0.0, 1.0)
    with pytest.raises(jaxtyping.TypeCheckError):
        LogitNormal(mean="0")


def test_the_first_calls_of_each_test_are_checked():
    for _ in range(2):  # as two tests
        for _ in range(shape_checks.MOST):
            with pytest.raises(jaxtyping.TypeCheckError):
                LogitNormal(mean="0")
        LogitNormal(mean="0")  # one more is taken for a repetition
        shape_checks.begin_test()
