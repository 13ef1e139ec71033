from types import SimpleNamespace

from hydra.core.hydra_config import HydraConfig
from test_exported import composed

from vidlab.lab.curate import OWN, words


def test_the_next_command_has_no_word_that_train_does_not_know(monkeypatch):
    assert set(composed("curate")) - set(composed("train")) <= set(OWN)
    given = ["data=folder", "endpoint.url=http://h/v1", "captioner@against=data", "dsg.clips=3", "seed=1"]
    job = SimpleNamespace(overrides=SimpleNamespace(task=given))
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    assert words() == ["data=folder", "seed=1"]
