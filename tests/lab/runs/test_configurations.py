import pytest

from vidlab.errors import UserError
from vidlab.lab.runs.configurations import group_by_settings, read_settings, seed_of


def test_runs_that_differ_in_their_seed_are_one_configuration():
    found = group_by_settings([
        ("model=full3d", "seed=0", "trainer.max_steps=5"), ("model=2p1d", "seed=0", "trainer.max_steps=5"),
        ("model=full3d", "seed=1", "trainer.max_steps=5"), ("seed=1", "model=2p1d", "trainer.max_steps=5"),
    ])  # fmt: skip
    assert [(one.name, one.runs, one.seeds) for one in found] == [
        ("model=full3d", (0, 2), (0, 1)), ("model=2p1d", (1, 3), (0, 1)),
    ]  # fmt: skip
    assert found[0].settings == {"model": "full3d"}


def test_what_makes_no_difference():
    same = group_by_settings([
        ("name=a", "+x.y=1e-3", "logger=none", "hydra.run.dir=q"), ("x.y=0.001", "name=b", "seed=1"),
        ("x.y=7", "x.y='0.0010'", "seed=2", "logger.uri=sqlite:///x"),
    ])  # fmt: skip
    assert [(one.name, one.seeds) for one in same] == [("all runs", (0, 1, 2))]
    assert len(group_by_settings([("named=a",), ("named=b",)])) == 2


def test_a_setting_that_was_not_typed_has_its_default():
    runs = [("seed=3",), ("model=2p1d", "losses.x.weight=2"), ("~losses.x",)]
    names = [one.name for one in group_by_settings(runs)]
    assert names == ["model=default losses.x.weight=default losses.x=default",
                     "model=2p1d losses.x.weight=2 losses.x=default",
                     "model=default losses.x.weight=default ~losses.x"]  # fmt: skip
    known = [{"model": "full3d", "seed": "9", "losses.x.weight": "1.0"}] * 2
    first, second = group_by_settings([(), ("model=2p1d", "losses.x.weight=1")], defaults=known)
    assert (first.name, first.seeds) == ("model=full3d", (9,)) and second.name == "model=2p1d"


def test_a_seed_that_comes_twice_is_another_configuration():
    found = group_by_settings([("seed=0",), ("seed=0",), ("seed=1",)])
    assert [(one.name, one.runs) for one in found] == [("run 1", (0, 2)), ("run 2", (1,))]
    found = group_by_settings([("seed=0", "steps=1"), ("seed=0", "steps=2"), ("seed=0", "steps=2")])
    assert [one.name for one in found] == ["steps=1", "steps=2 (run 1)", "steps=2 (run 2)"]


def test_seeds():
    assert seed_of(["seed=1", "+seed=4"]) == 4 and seed_of(["seeds=1"], default=2) == 2
    with pytest.raises(UserError, match="seed=x: a seed is a whole number"):
        seed_of(["seed=x"])


def test_settings_are_read_from_a_run(tmp_path):
    assert read_settings(tmp_path) is None
    record = tmp_path / ".hydra"
    record.mkdir()
    (record / "overrides.yaml").write_text("- model=2p1d\n- seed=4\n")
    (record / "config.yaml").write_text("seed: 4\ncompile: false\nmodel: {depth: 2, sizes: [1, null]}\nlosses: {}\n")
    (record / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: 2p1d, losses: none, experiment: null}}}\n")
    found = read_settings(tmp_path)
    assert found.overrides == ("model=2p1d", "seed=4")
    assert found.defaults == {
        "seed": "4", "compile": "false", "model.depth": "2", "model.sizes": "[1,null]", "model": "2p1d",
        "losses": "none", "experiment": "null",
    }  # fmt: skip
    (record / "hydra.yaml").write_text("hydra: {}\n")
    with pytest.raises(UserError, match="damaged"):
        read_settings(tmp_path)
