"""What a configuration out of a stranger's file may name, and that nothing it names is imported or run."""

import copy
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import locate_target
from vidlab.lab.cli.programs import CONFIGURATIONS
from vidlab.lab.evaluation.autoencoders import evaluate_autoencoders
from vidlab.lab.evaluation.run import evaluate_run
from vidlab.lab.export import main as export
from vidlab.lab.generate import from_checkpoint
from vidlab.lab.init import CheckpointSource, RunContext
from vidlab.lab.loading import LoadSettings, module_of
from vidlab.lab.runs.resolve import Run
from vidlab.lab.runs.resume_check import check_changes
from vidlab.lab.trusted_config import (
    REBUILT,
    Allowed,
    own_classes,
    shipped_targets,
    stored_settings,
    trained_config,
    trusted_config,
)
from vidlab.training.checkpoint_io import load_checkpoint

CONF = Path(__file__).resolve().parents[2] / "conf"
# each runs code of the file's choice or writes where it says; the last two are vidlab's and lightning's own
HOSTILE = (
    "sympy.sympify",
    "pandas.read_pickle",
    "torch.load",
    "subprocess.run",
    "builtins.eval",
    "os.system",
    "hostile_module.run",
    "vidlab.lab.export.main",
    "lightning.pytorch.callbacks.Lambda",
)
PLACES = (
    "autoencoder",
    "task",
    "losses.extra",
    "callbacks.ema",
    "metrics.psnr",
    "logger",
    "model.backbone",
    "model.backbone.layouts.layouts.0",
    "objective.time_sampler",
    "data.source",
    "data.source.nested.deep.in.0.a.0.b",
    "unheard_of",
)
TINY = ["model.backbone.width=16", "model.backbone.depth=1", "model.backbone.heads=1",
        "data.frames=4", "data.height=16", "data.width=16"]  # fmt: skip


def composed(name: str, *arguments: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(arguments))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """A run's configuration, as a checkpoint records it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["callbacks=[]", "logger=none", *TINY])
    found = yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def hostile_module(tmp_path, monkeypatch) -> Path:
    """A module on the path whose import, and whose function, leave a trace."""
    trace = tmp_path / "trace"
    (tmp_path / "hostile_module.py").write_text(
        f"open({str(trace)!r}, 'w').close()\ndef run(*args, **kwargs): open({str(trace)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield trace
    assert not trace.exists() and "hostile_module" not in sys.modules


def as_yaml(settings: dict[str, Any]) -> str:
    return yaml.dump(settings, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))


def with_node(settings: dict[str, Any], place: str, node: Any) -> str:
    """The configuration as YAML with ``node`` in a place, which is made where it is not there."""
    changed: Any = copy.deepcopy(settings)
    at, keys = changed, [int(key) if key.isdigit() else key for key in place.split(".")]
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        empty = node if following is None else [None] if isinstance(following, int) else {}
        missing = isinstance(at, dict) and not isinstance(at.get(key), dict | list)
        if following is None or missing or (isinstance(at, list) and not isinstance(at[key], dict | list)):
            at[key] = empty
        at = at[key]
    return as_yaml(changed)


def refusal(text: Any, allowed: Allowed = Allowed()) -> str:  # noqa: B008
    with pytest.raises(UserError) as caught:
        trusted_config(text, "it.ckpt", allowed)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def test_a_runs_own_configuration_is_admitted(settings):
    text = as_yaml(settings)
    trusted = OmegaConf.to_container(trusted_config(text, "it.ckpt", Allowed()))
    for group in REBUILT:
        assert trusted[group] == settings[group]
    assert trusted["seed"] == settings["seed"] and trusted["attention"] == "auto"
    assert "trainer" not in trusted and "optimizer" in trusted  # a trainer is never built from a file
    assert stored_settings(text, "it.ckpt") == settings


@pytest.mark.parametrize(
    "target, place", [*((target, "losses.extra") for target in HOSTILE), *(("os.system", place) for place in PLACES)]
)
def test_other_classes_are_refused_wherever_they_hide(settings, hostile_module, target, place):
    text = with_node(settings, place, {"_target_": target, "file": "x"})
    message = refusal(text)
    assert message.startswith(f"it.ckpt: its configuration asks for {target} ({place}._target_), which is not among")
    # the message says what to type, and typing it admits this class and no other
    (argument,) = re.findall(r"add (allow='\[.*\]') to the command line", message)
    assert shlex.split(argument) == [f"allow=[{target}]"]
    if place not in ("autoencoder", "task"):
        trusted_config(text, "it.ckpt", Allowed(frozenset({target})))


def test_several_are_named_at_once_with_those_admitted_already(settings):
    text = with_node(settings, "losses", {"a": {"_target_": "mylab.A"}, "b": {"_target_": "mylab.B"}})
    message = refusal(text, Allowed(frozenset({"other.C"})))
    assert "mylab.A (losses.a._target_), mylab.B (losses.b._target_)" in message
    assert "add allow='[mylab.A,mylab.B,other.C]' to" in message
    assert "add --allow=mylab.A,mylab.B to" in refusal(text, Allowed(typed="--allow={}"))


def test_classes_that_open_any_place_stand_only_where_nothing_is_built(settings):
    """Lightning's ModelCheckpoint opens the file system that its ``dirpath`` names; the logger, any store."""
    for target in ("lightning.pytorch.callbacks.ModelCheckpoint", "vidlab.lab.tracking.mlflow_logger.MLflowLogger"):
        trusted_config(with_node(settings, "callbacks.checkpoint", {"_target_": target}), "it.ckpt", Allowed())
        assert target in refusal(with_node(settings, "autoencoder", {"_target_": target}))


@pytest.mark.parametrize(
    "name", ["", "x", "a..b", "os.system(1)", "a.b\x1b[2J", "a.b; rm -rf ~", "é.b", None, 3, ["a"]]
)
def test_what_is_no_dotted_name_is_refused(settings, name):
    assert "no dotted name" in refusal(with_node(settings, "losses.extra", {"_target_": name}))


@pytest.mark.parametrize(
    "more",
    [{"_args_": ["rm -rf"]}, {"_convert_": "all"}, {"_recursive_": False}, {"_partial_": "yes"}, {"_partial_": 1}],
    ids=str,
)
def test_words_to_hydra_are_only_those_the_shipped_configurations_use(settings, more):
    (word,) = more
    assert f"autoencoder.{word}" in refusal(
        with_node(settings, "autoencoder", {"_target_": "vidlab.autoencoders.haar.Haar"} | more)
    )
    own = with_node(settings, "losses.own", {"_target_": "mylab.A"} | more)
    if word == "_partial_":
        assert word in refusal(own, Allowed(frozenset({"mylab.A"})))
    else:  # a class that the user admits is the user's own affair
        trusted_config(own, "it.ckpt", Allowed(frozenset({"mylab.A"})))
    assert word in refusal(with_node(settings, "losses.bare", more))


def test_arguments_that_a_class_does_not_declare_are_refused(settings):
    text = with_node(settings, "autoencoder", settings["autoencoder"] | {"hook": "os.system"})
    trained = trusted_config(text, "it.ckpt", Allowed())
    with pytest.raises(UserError, match=r"autoencoder\.hook=os\.system: Haar has no setting 'hook'"):
        module_of({"state_dict": {}}, trained, Path("it.ckpt"), LoadSettings())


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "\\${oc.env:HOME}", "a${oc.env:HOME,x}", "${oc.decode:'1'}", "${hydra:runtime.cwd}", "${seed}",
     "${oc.create:{_target_: os.system}}", "${run_folder:last,x,y}"],
)  # fmt: skip
def test_nothing_is_resolved(settings, monkeypatch, text):
    monkeypatch.setenv("HOME", "/secret")
    message = refusal(with_node(settings, "model.backbone.layouts.layouts.0.size", text))
    assert "would be replaced by something else" in message and "/secret" not in message
    unbuilt = with_node(settings, "callbacks", {"previews": {"prompts": [text]}})
    assert "callbacks" not in trusted_config(unbuilt, "it.ckpt", Allowed())
    assert stored_settings(unbuilt, "it.ckpt")["callbacks"]["previews"]["prompts"] == [text]  # text and no more


REPEATED = (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))
BOMB = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *REPEATED])


@pytest.mark.parametrize(
    "text, said",
    [
        (BOMB, "YAML aliases"),
        ("a: &a [*a]", "YAML aliases"),
        ("a: " + "[" * 10_000, "nested deeper"),
        ("{a: " * 10_000, "nested deeper"),
        ("- " * 10_000, "nested deeper"),
        ("a: " + "x" * 2**20, "characters"),
        ("a: [" + "1," * 30_000 + "]", "more than 20000 values"),
        ("a: !!python/object/apply:os.system ['touch trace']", "cannot be read"),
        ("a: !!python/name:os.system", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 1\na: 2", "cannot be read"),
        ("a: ${", "cannot be read"),
        ("a: [", "cannot be read"),
        ("\0", "cannot be read"),
        ("[1, 2]", "no mapping"),
        ("a", "has no data"),
        ("", "has no data"),
        (b"a: 1", "it is a bytes"),
        ({"task": {"_target_": "os.system"}}, "it is a dict"),
        (None, "it is a NoneType"),
        ("data: {}\nautoencoder: haar", "has no autoencoder"),
    ],
)
def test_what_is_no_configuration_is_refused_before_it_grows(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(text)
    assert not list(tmp_path.iterdir())


def test_names_are_admitted_by_the_command_line_and_the_environment(monkeypatch):
    monkeypatch.delenv("VIDLAB_ALLOW", raising=False)
    assert Allowed.of([]) == Allowed.of(None) == Allowed()
    assert Allowed.of("a.B").names == {"a.B"}
    monkeypatch.setenv("VIDLAB_ALLOW", "c.D, e.F,")
    assert Allowed.of(OmegaConf.create(["a.B"])).names == {"a.B", "c.D", "e.F"}
    for wrong in ("a.*", "mylab", "a.b.", "a b.c"):
        with pytest.raises(UserError, match="give exact dotted names"):
            Allowed.of([wrong])


def test_a_file_does_not_admit_its_own_classes(settings):
    text = with_node(settings | {"allow": ["mylab.A"]}, "losses.own", {"_target_": "mylab.A"})
    assert "mylab.A (losses.own._target_)" in refusal(text)


def test_no_reader_of_checkpoints_runs_what_one_names(settings, hostile_module, tmp_path, monkeypatch, capsys):
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stranger.ckpt"
    hostile = with_node(settings, "autoencoder", {"_target_": "hostile_module.run", "path": "x"})
    torch.save({"state_dict": {"autoencoder.x": torch.zeros(1)}, "ema": {}, "config": hostile}, path)
    run, named = Run(tmp_path, path, None), r"asks for hostile_module\.run \(autoencoder\._target_\)"
    with pytest.raises(UserError, match=named):
        from_checkpoint(composed("generate", "prompt=x", f"checkpoint={path}"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        evaluation = compose("evaluate", [f"autoencoders=[{path}]"])
        assert GlobalHydra.instance().is_initialized()
        with pytest.raises(UserError, match=named):
            evaluate_autoencoders(evaluation, tmp_path)
    with pytest.raises(UserError, match=named):
        evaluate_run(run, evaluation, {})
    assert export([str(path), str(tmp_path / "out")]) == 2
    assert re.search(named, error := capsys.readouterr().err) and "--allow=hostile_module.run" in error
    # these compare, and read sizes; they build nothing
    cfg = composed("train", *TINY, "logger=none", "callbacks=[]", f"ckpt_path={path}")
    with pytest.raises(UserError, match=r"autoencoder\._target_: hostile_module\.run in the checkpoint"):
        check_changes(cfg, load_checkpoint(path), path)
    assert (
        CheckpointSource(str(path), weights="raw").load(RunContext("vidlab", None), "init.run")[1]["data"]["frames"]
        == 4
    )


def test_a_checkpoint_without_a_configuration_is_named():
    with pytest.raises(UserError, match=r"x\.ckpt holds no configuration"):
        trained_config({"state_dict": {}}, Path("x.ckpt"), Allowed())


def targets(node: Any, group: str) -> set[tuple[str, str]]:
    found = {(node["_target_"], group)} if isinstance(node, dict) and isinstance(node.get("_target_"), str) else set()
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found |= targets(value, group)
    return found


def test_the_classes_are_those_of_the_shipped_files():
    """Parsed here, and read as text there; what comments offer is the difference."""
    parsed: set[tuple[str, str]] = set()
    for file in CONF.rglob("*.yaml"):
        text, group = file.read_text(), file.relative_to(CONF).parts[0]
        content = yaml.safe_load(text) or {}
        if "@package _global_" in text:
            parsed.update(*(targets(value, key) for key, value in content.items()))
        else:
            parsed |= targets(content, group)
    built = {name for name, group in parsed if group in (*REBUILT, "bucketing", "lengths", "mixer", "structure")}
    offered = {
        "vidlab.autoencoders.tiling.Tiling",
        "vidlab.conditioning.patterns.EveryNth",
        "vidlab.diffusion.betas.CosineBetas",
        "vidlab.diffusion.betas.ScaledLinearBetas",
        "vidlab.diffusion.weightings.P2",
        "vidlab.sampling.guidance_scales.CosineScale",
        "vidlab.sampling.spacings.Karras",
        "vidlab.sampling.spacings.Leading",
        "vidlab.sampling.spacings.Linspace",
        "vidlab.training.optimization.clipping.AdaptiveClipper",
    }
    assert shipped_targets("model") == built | offered
    elsewhere = {"lightning.pytorch.callbacks.LearningRateMonitor"}  # in place of a callback, and in older runs
    assert shipped_targets("callbacks") == {name for name, _ in parsed} | offered | elsewhere
    assert not shipped_targets("model") & set(HOSTILE) and len(built) > 60


def test_every_class_declares_its_arguments():
    """Without ``*args`` and ``**kwargs``, the check before building leaves no argument undeclared."""
    import inspect

    named_by_users = {"vidlab.curation.recipe.recipe"}  # its arguments are steps, each checked by itself
    for name in shipped_targets("callbacks") - named_by_users:
        parameters = inspect.signature(locate_target(name, "conf")).parameters.values()
        assert not [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)], name


def test_configurations_are_beside_the_package_in_a_wheel_and_at_the_root_of_a_checkout():
    import vidlab

    package = Path(vidlab.__file__).parent
    assert (package / "conf", package.parents[1] / "conf") == CONFIGURATIONS and CONFIGURATIONS[1] == CONF


def test_ones_own_classes_are_told_for_the_next_command():
    cfg = composed("train", "+losses.own._target_=mylab.A", "logger=none")
    assert own_classes(cfg) == ["mylab.A"]
    assert Allowed().argument(own_classes(cfg)) == "allow='[mylab.A]'"


@pytest.mark.parametrize(
    "place, value",
    [
        ("model.backbone.depth", 10**12),
        ("model.backbone.depth", 10**5),
        ("model.backbone.depth", "many"),
        ("model.backbone.layouts", None),
        ("model.token", 3),
        ("task.log_snr_bins", ["x"]),
        ("objective", {"_target_": "vidlab.autoencoders.haar.Haar"}),
        ("optimizer", None),
        ("data.frames", "four"),
    ],
)
def test_values_that_no_class_expects_are_one_sentence(settings, place, value):
    state = {"state_dict": {"backbone.x": torch.zeros(99_999)}}
    with pytest.raises(UserError) as caught:
        trained = trusted_config(with_node(settings, place, value), "it.ckpt", Allowed())
        module_of(state, trained, Path("it.ckpt"), LoadSettings())
    assert "\n" not in str(caught.value)
