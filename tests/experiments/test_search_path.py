"""Hydra finds the tables of experiments/, and an installation without them is as good as one with an empty folder."""

import warnings
from pathlib import Path

import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.object_type import ObjectType

from hydra_plugins.vidlab_experiments import BESIDE_SOURCES, CONF, ExperimentsPath, ExperimentsSource


@pytest.fixture
def source(tmp_path):
    for name in (
        "a/one/sweep.yaml",
        "a/one/rows/x.yaml",
        "a/one/rows/y.yaml",
        "a/two/sweep.yaml",
        "a/three/README.md",
        "b/note.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# @package _global_\n# A table.\nname: it\n" if name.endswith(".yaml") else "")
    return ExperimentsSource("test", f"experiments://{tmp_path}")


def test_tables_are_choices_and_their_rows_too(source):
    assert source.list("experiment", ObjectType.GROUP) == ["a", "b"]
    assert source.list("experiment/a", ObjectType.CONFIG) == ["one", "two"]
    assert source.list("row/a/one", ObjectType.CONFIG) == ["x", "y"]
    assert source.list("experiment/a", None) == ["one", "three", "two"]
    assert source.is_config("experiment/a/one") and source.is_config("row/a/one/x.yaml")
    assert not source.is_config("experiment/a/three") and not source.is_config("row/a/two/x")
    assert not source.is_group("experiment/a/one") and source.is_group("row/a/one") and not source.is_group("row/a/two")


def test_other_groups_are_none_of_its_business(source):
    assert (
        not source.is_group("model") and not source.is_config("train") and source.list("model", ObjectType.CONFIG) == []
    )
    assert not source.is_config("experiment") and not source.is_group("experiment/none")


def test_a_configuration_and_its_header(source):
    found = source.load_config("experiment/a/one")
    assert found.config == {"name": "it"} and found.header["package"] == "_global_"


def test_without_a_folder_there_is_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        absent = ExperimentsSource("test", f"experiments://{tmp_path / 'none'}")
        assert absent.available() and absent.list("experiment", None) == [] and not absent.is_config("experiment/a/one")


def test_a_checkout_has_its_own():
    assert Path(__file__).parents[2] / "experiments" == BESIDE_SOURCES
    assert ExperimentsSource("test", "experiments://").path == str(BESIDE_SOURCES)


@pytest.mark.parametrize(("main", "found"), [(CONF, ["vidlab-experiments"]), (CONF.parent / "docs", [])])
def test_other_programs_of_hydra_do_not_see_them(main, found):
    path = ConfigSearchPathImpl()
    path.append("main", f"file://{main}")
    ExperimentsPath().manipulate_search_path(path)
    assert [part.provider for part in path.get_path() if part.provider != "main"] == found
