"""What is printed to be typed arrives as it was meant: through shell, vidlab, Hydra and OmegaConf."""

import shlex
from pathlib import Path
from random import Random

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vidlab.command_line import command, exit_code, setting
from vidlab.errors import UserError
from vidlab.lab.cli.arguments import quote_text

NASTY = (
    "runs/vidlab/2026-11-20_17-44-31", "run (1)/last.ckpt", "x/epoch=1-step=2.ckpt", "a b", " a ", "a,b", "[a]",
    "{a: b}", "it's", 'say "cheese"', "-x", "~/x", "$HOME/x", "${x}", "\\${x}", "a\\", "a\\'b", "数据/猫", "take:2.mp4",
    "a#b", "a&b;c", "null", "true", "007", "1e5", "-inf", "a\nb", "*?!", "`x`", "<x>|y", "", "😀", "%20", "a@b",
    "choice(1,2)", "'a','b'",
)  # fmt: skip


def arrives(word: str, key: str, sweep: bool = False) -> object:
    """The value of ``key`` that a program sees."""
    overrides = OverridesParser.create().parse_overrides([quote_text(word, (), sweep)])
    if sweep:
        ((line,),) = BasicSweeper.split_arguments(overrides, None)
        overrides = OverridesParser.create().parse_overrides(line)
    assert overrides[0].key_or_group == key
    return OmegaConf.create({"value": overrides[0].value()}).value


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("sweep", [False, True])
def test_a_printed_setting_is_read_back(value, sweep):
    program, *words = shlex.split(
        command("train.py", setting("data.path", value), "--flag", setting("other.key", value))
    )
    assert program == "python" and words[0] == "train.py" and words[2] == "--flag"
    assert arrives(words[1], "data.path", sweep) == arrives(words[3], "other.key", sweep) == value


def test_a_printed_list_is_read_back():
    (*_, word) = shlex.split(command("evaluate.py", setting("autoencoders", [*map(Path, NASTY[:12]), *NASTY[12:]])))
    assert list(arrives(word, "autoencoders")) == [*(str(Path(value)) for value in NASTY[:12]), *NASTY[12:]]


def test_texts_of_awkward_characters_are_read_back():
    random, parts = Random(0), ["\\", "'", '"', "$", "${", "}", "[", "]", "a", " ", ",", "=", ":", "\n", "猫", "#"]
    for _ in range(100):
        value = "".join(random.choices(parts, k=random.randint(1, 8)))
        word = shlex.split(command("train.py", setting("x.y", value)))[2]
        assert arrives(word, "x.y") == arrives(word, "x.y", sweep=True) == value


def test_plain_values_are_printed_plain():
    line = command("generate.py", setting("checkpoint", Path("runs/a/2026-01-01")), "prompt=a red square", "seed=0,1")
    assert line == "python generate.py checkpoint=runs/a/2026-01-01 prompt='a red square' seed=0,1"
    assert command("-m vidlab.lab.export", "-m", "a b") == "python -m vidlab.lab.export -m 'a b'"


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (UserError("http://me:secret@host/x\x1b[2J: no such run."), 2, "http://me:***@host/x\\x1b[2J: no such run.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_what_a_user_can_mend_is_an_exit_code_and_a_line(raised, code, told, capsys):
    @exit_code
    def program(fails: bool) -> None:
        if fails:
            raise raised

    assert program(False) == 0 and program(fails=True) == code
    assert capsys.readouterr() == ("", told)


def test_a_mistake_in_the_code_passes():
    @exit_code
    def program() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program()
