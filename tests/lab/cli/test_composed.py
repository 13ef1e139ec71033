"""Configurations in Python."""

import pytest
from hydra.core.global_hydra import GlobalHydra

import vidlab
from vidlab.errors import UserError


def test_what_train_would_compose():
    cfg = vidlab.compose("model=skiparse", "seed=3")
    assert (cfg.model.name, cfg.seed, cfg.model.backbone.layouts.full_first) == ("skiparse", 3, 1)
    assert not GlobalHydra.instance().is_initialized()


def test_other_programs_and_none():
    assert vidlab.compose("prompt=x", program="generate").prompt == "x"
    with pytest.raises(UserError, match="program=paint: choose train"):
        vidlab.compose(program="paint")


@pytest.mark.parametrize(
    ("word", "told"), [("modle=x", "modle"), ("model=skipars", "Did you mean 'skiparse'"), ("seed", "key=value")]
)
def test_mistakes_are_told_in_one_message(word, told):
    with pytest.raises(UserError, match=told):
        vidlab.compose(word)
