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


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("refine=refiners/mine", "refine=refiners/mine: it must be true or false; refiner=refiners/mine says"),
        ("refiner_tokens=0", "refiner_tokens=0: it must be a whole number of 1 or more"),
    ],
)
def test_settings_of_the_refiner_that_cannot_work(word, message):
    with pytest.raises(UserError, match=message):
        check_settings(composed("generate", "prompt=x", word))
