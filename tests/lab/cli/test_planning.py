"""Which words ask for a plan, so that nothing of it is left."""

import pytest

from vidlab.errors import UserError
from vidlab.lab.cli.planning import asks_for_plan, nothing_left


@pytest.mark.parametrize("word", ["plan=true", "plan=True", "+plan=true", "++plan=TRUE", "plan=yes", "plan=1"])
def test_words_that_ask_for_a_plan(word: str) -> None:
    assert asks_for_plan(word.partition("=")[2])
    with nothing_left(["model=2p1d", word]) as arguments:
        assert arguments[:2] == ["model=2p1d", word] and "hydra.output_subdir=null" in arguments


@pytest.mark.parametrize("value", [False, None, "no", 0])
def test_words_that_ask_for_none(value: object) -> None:
    assert not asks_for_plan(value)
    with nothing_left([f"plan={value}"]) as arguments:
        assert arguments == [f"plan={value}"]


def test_a_word_that_says_neither() -> None:
    with pytest.raises(UserError, match="plan=perhaps: it must be true or false"):
        asks_for_plan("perhaps")
