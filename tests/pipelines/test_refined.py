import pytest
import torch

from vidlab.errors import UserError
from vidlab.pipelines.refined import chosen_refiner
from vidlab.text.refiner.language_model import LanguageModel
from vidlab.text.refiner.refiner import PromptRefiner


def test_a_refiner_by_its_folder_goes_where_the_pipeline_is(monkeypatch):
    """As generate.py has it, so that both give the same bits."""
    language = LanguageModel(torch.nn.Linear(1, 1), None, "", {}, "")
    monkeypatch.setattr(PromptRefiner, "load", lambda folder, key: PromptRefiner(language))
    chosen_refiner("refiners/mine", None, torch.device("meta"))
    assert language.model.weight.device.type == "meta"


def test_a_pipeline_without_a_refiner():
    with pytest.raises(UserError, match="this pipeline has no refiner"):
        chosen_refiner(True, None, torch.device("cpu"))
