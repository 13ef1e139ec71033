"""What generate.py refuses before anything slow begins."""

from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from test_exported import composed

from vidlab.errors import UserError
from vidlab.lab.generate import check_settings, run_generation


def test_the_checkpoint_is_looked_for_before_prompts_are_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr(HydraConfig, "get", lambda: run)
    with pytest.raises(UserError, match="checkpoint=nowhere: no such run folder"):
        run_generation(composed("generate", "prompt=x", "checkpoint=nowhere", "refine=true", "refiner=/no/such"))
