"""Configurations of earlier versions name classes where they were then."""

import sys

import pytest

from vidlab.lab.cli.hydra_main import locate_target
from vidlab.lab.earlier_names import CLASSES, MODULES, with_names_of_today
from vidlab.lab.trusted_config import stored_settings

# What the configuration of a default run named when modules had not moved into rooms.
BEFORE = """
objective:
  _target_: vidlab.diffusion.objective.GaussianObjective
  parameterization: {_target_: vidlab.diffusion.parameterizations.Sample}
optimizer:
  _target_: vidlab.training.optimization.OptimizerFactory
  algorithm: {_target_: vidlab.training.muon.MuonWithAdamW, _partial_: true}
lr_schedule: {_target_: vidlab.training.optimization.Cosine}
data: {_target_: vidlab.data.module.ClipDataModule, source: {_target_: vidlab.data.moving_shapes.MovingShapes}}
metrics: [{_target_: vidlab.metrics.fvd.FVD}]
own: {_target_: mylab.training.muon.Mine}
"""


def test_a_default_run_of_before_is_read_with_the_names_of_today():
    found = stored_settings(BEFORE, "a checkpoint")
    assert found["objective"]["parameterization"]["_target_"] == "vidlab.diffusion.parameterizations.X0Prediction"
    assert found["optimizer"]["algorithm"]["_target_"] == "vidlab.training.optimization.muon.MuonWithAdamW"
    assert found["optimizer"]["_target_"] == "vidlab.training.optimization.optimizers.OptimizerFactory"
    assert found["lr_schedule"]["_target_"] == "vidlab.training.optimization.optimizers.Cosine"
    assert found["data"]["source"]["_target_"] == "vidlab.data.moving_shapes.MovingShapes"
    assert found["metrics"] == [{"_target_": "vidlab.metrics.sets.fvd.FVD"}]
    assert found["own"]["_target_"] == "mylab.training.muon.Mine"
    for name in ("objective", "optimizer", "lr_schedule"):
        assert locate_target(found[name]["_target_"], name)


def test_names_of_today_stay():
    today = {"_target_": "vidlab.training.optimization.muon.MuonWithAdamW", "lr": 1.0, "list": ["vidlab.data.folder.A"]}
    assert with_names_of_today(today) == today


@pytest.mark.parametrize("module", MODULES.values())
def test_modules_are_there(module):
    __import__(f"vidlab.{module}")


def test_a_module_is_imported_by_its_earlier_name_with_a_warning():
    from vidlab.data.datasets import folder

    sys.modules.pop("vidlab.data.folder", None)
    with pytest.warns(DeprecationWarning, match=r"vidlab\.data\.folder is vidlab\.data\.datasets\.folder now"):
        from vidlab.data.folder import FolderSource
    assert FolderSource is folder.FolderSource and folder.__spec__.name == "vidlab.data.datasets.folder"
    with pytest.raises(ModuleNotFoundError, match=r"vidlab\.data\.nothing"):
        __import__("vidlab.data.nothing")


@pytest.mark.parametrize("name", CLASSES.values())
def test_classes_are_there(name):
    assert locate_target(f"vidlab.{name}", "name")
