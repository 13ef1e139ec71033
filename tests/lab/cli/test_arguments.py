import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vidlab.errors import UserError
from vidlab.lab.cli.arguments import as_typed, quote_text


def value(argument: str, sweep: bool = False) -> object:
    """What a program sees of an argument; ``prompt`` is a text."""
    override = OverridesParser.create().parse_override(quote_text(argument, ("prompt",), sweep))
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    node = OmegaConf.create({"value": override.value()}).value
    return list(node) if OmegaConf.is_list(node) else node


@pytest.mark.parametrize(
    "text",
    [
        *("a cat \\ a dog", "C:\\new", "ends in \\", '"STOP" sign in rain', "'tis the season", "[wide shot] a cat"),
        *(
            "a cat [close]",
            "[wide] a cat [close]",
            "price ${5}",
            "\\${x}",
            "a, b (c) = d",
            "null",
            "12",
            "",
            "猫: a #1",
        ),
        *('He says "a", then "b"', '"a" and "b"', "two\nlines", "{a: b}", "choice(1,2)", "-v"),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_a_prompt_arrives_as_typed(text, sweep):
    assert value(f"prompt={text}", sweep) == text
    assert value(quote_text(f"prompt={text}", ("prompt",), sweep), sweep) == text, "as processes of one run pass it on"


def test_several_prompts_are_a_list():
    assert value("prompt=[a red ball,it's (blue) = ${5}]") == ["a red ball", "it's (blue) = ${5}"]
    assert value("prompt=['a, b' , \"c\" ]") == ["a, b", "c"]
    assert value("prompt=[only one]") == ["only one"] and value("prompt=[]") == []
    assert value("callbacks.previews.prompts=[a \\ b,c: d!]") == ["a \\ b", "c: d!"]
    assert value("callbacks.previews.prompts=null") is None


def test_quotes_around_all_of_a_prompt_are_hydras_and_sweeps_go_over_quoted_texts():
    assert value("prompt='a, b'") == "a, b"
    assert value("prompt='a','b, c'", sweep=True) == ["'a'", "'b, c'"]
    assert value("prompt='a','b, c'") == "'a','b, c'"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x/epoch=1-step=2.ckpt",
            "/数据",
            "/runs/run (1)/last.ckpt",
            "take:2.mp4",
            "~/x",
            "a#b",
            "it's",
            "a&b",
            " a ",
        ),
        *("007", "1_000", "12345678e12345678901234567890123", "true", "nan", "x{1}.mp4", "x[1].mp4", "a\nb"),
    ],
)
def test_a_path_arrives_as_typed(text):
    for key in ("data.path", "checkpoint", "+init.run", "data.cache"):
        assert value(f"{key}={text}") == text


def test_a_cache_that_is_no_folder_is_a_truth_value():
    assert value("sampler.cache=false") is False


def test_what_hydra_understands_stays_hydras():
    for argument in ("model=2p1d", "seed=7", "optimizer.lr=1e-3", "data.path=null", "runs=[a,b]", "x={a: 1}", "-m",
                     "--cfg", "x='a, b'", "data.path=${oc.env:HOME}/x", "~data.path", "trainer.max_steps==",
                     "x=range(1,3)", "--config-name=a=b", "data.path=a,b"):  # fmt: skip
        assert quote_text(argument, ("prompt",)) == argument
    assert value("data.path=/a,/b", sweep=True) == ["/a", "/b"]
    assert value("data.path=/数据,/b", sweep=True) == ['"/数据"', "/b"]
    assert value("runs=[a (1),b=2]") == ["a (1)", "b=2"]


def test_the_guidance_within_another_is_a_choice_by_name():
    assert quote_text("guidance.inner=cfg_early") == "guidance@guidance.inner=cfg_early"
    assert quote_text("guidance.inner=cfg,cfg_early", sweep=True) == "guidance@guidance.inner=cfg,cfg_early"
    assert quote_text("guidance.inner.scale=5") == "guidance.inner.scale=5"
    assert quote_text("guidance.inner={scale: 5}") == "guidance.inner={scale: 5}"


def test_names_that_are_not_utf8_are_refused():
    with pytest.raises(UserError, match=r"data.path=/x\\udcff: this is not UTF-8"):
        quote_text("data.path=/x\udcff")


def test_an_argument_is_shown_as_it_must_be_typed():
    shown = as_typed("data.path=[a] it's")
    assert shlex.split(shown) == ['data.path="[a] it\'s"']
    assert value(shlex.split(shown)[0]) == "[a] it's"
