"""What a file describes is built within the size of its weights, and fails as one sentence about the file."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.lab.rebuilding import no_larger_than, rebuilding

FILE = Path("it.ckpt")
LARGER = r"it\.ckpt: its configuration describes a larger model"
WEIGHTS = {"weight": torch.zeros(4, 3), "bias": torch.zeros(4), "step": 7}


def test_a_model_of_the_weights_own_size_is_built():
    with no_larger_than(WEIGHTS, FILE):
        nn.Linear(3, 4)
    nn.Linear(1000, 1000)  # and nothing is counted afterwards


def test_a_larger_parameter_is_refused_before_it_is_filled(monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: pytest.fail("filled"))
    with pytest.raises(UserError, match=LARGER), no_larger_than(WEIGHTS, FILE):
        nn.Linear(13, 1)


def test_modules_without_end_are_refused():
    with pytest.raises(UserError, match=LARGER), no_larger_than(WEIGHTS, FILE):
        while True:
            nn.Linear(3, 4)
    assert not nn.modules.module._global_parameter_registration_hooks


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), AttributeError(), ZeroDivisionError(), MemoryError(), KeyError(3)]
)
def test_any_other_error_is_one_sentence_about_the_file(error):
    said = rf"^it\.ckpt: the model .* cannot be rebuilt \({type(error).__name__}: .*\)"
    with pytest.raises(UserError, match=said), rebuilding(FILE):
        raise error


@pytest.mark.parametrize("error", [UserError("mine"), KeyboardInterrupt()])
def test_messages_and_interrupts_pass(error):
    with pytest.raises(type(error)) as caught, rebuilding(FILE):
        raise error
    assert caught.value is error
