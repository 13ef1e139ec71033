import json

import pytest
from omegaconf import OmegaConf

from vidlab.errors import UserError
from vidlab.lab.runs.resume_check import changes_between, check_changes


def test_the_refusal_gives_the_whole_command_of_the_run(tmp_path):
    recorded = ["model=2p1d", "seed=5", "trainer.max_steps=10", "ckpt_path=last", "accept_changes=true"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "provenance.json").write_text(json.dumps({"overrides": recorded}))
    cfg = OmegaConf.create({"seed": 0, "trainer": {"max_steps": 20}, "ckpt_path": "runs/a b", "accept_changes": False})
    state = {"config": "seed: 5\ntrainer: {max_steps: 10}\n"}
    typed = ["trainer.max_steps=20", "seed=0", "ckpt_path=runs/a b"]
    with pytest.raises(UserError) as caught:
        check_changes(cfg, state, tmp_path / "checkpoints" / "last.ckpt", typed)
    own = """python train.py model=2p1d seed=5 trainer.max_steps=20 ckpt_path='"runs/a b"'"""
    assert f"With the run's own settings: {own}\n" in str(caught.value)


def test_a_training_aid_that_changes_no_bit_may_differ():
    assert changes_between({"activation_offload": True, "seed": 0}, OmegaConf.create({"seed": 0})) == []
    assert len(changes_between({"seed": 1}, OmegaConf.create({"seed": 0, "activation_offload": False}))) == 1
