"""An objective and a sampler of different processes are refused with the choices that go together."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.errors import UserError
from vidlab.lab.compose import build_module

CONF = Path(__file__).resolve().parents[2] / "conf"


class OtherProcess(GaussianObjective):
    process = "other"


def test_a_sampler_of_another_process_is_refused_with_what_goes_together():
    overrides = [f"objective._target_={__name__}.OtherProcess", "sampler=heun"]
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError) as refused:
        build_module(compose("train", overrides))
    message = str(refused.value)
    assert "sampler=GaussianSampler undoes the gaussian process and objective=OtherProcess" in message
    assert "sampler=none; of the sampler's are objective=epsilon, epsilon_cosine" in message
    assert "flow_matching_logit_normal" in message  # which begins from another choice
