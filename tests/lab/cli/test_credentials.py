import logging
import pickle

import pytest
from omegaconf import OmegaConf

from vidlab.errors import UserError
from vidlab.lab.cli import credentials
from vidlab.lab.cli.credentials import clean_log, clean_records, complete, withhold
from vidlab.lab.runs import provenance
from vidlab.lab.runs.config_record import resolved_yaml
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.mlflow_names import flatten

WHOLE = "postgresql://me:secret@127.0.0.1:9/db"
SHOWN = "postgresql://me:***@127.0.0.1:9/db"


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    monkeypatch.setenv(credentials.ADDRESSES, "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("key", ["logger.uri", "+logger.uri", "tracking_uri"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_what_is_typed_is_known_to_this_process_and_to_nothing_else(key, quote):
    words = withhold([f"{key}={quote}{WHOLE}{quote}", "seed=1", "prompt=http://a:b@c"])
    assert words == [f"{key}={quote}{SHOWN}{quote}", "seed=1", "prompt=http://a:b@c"]
    assert complete(SHOWN) == WHOLE
    assert withhold(words) == words and complete(SHOWN) == WHOLE  # a process that it starts


def test_several_addresses_of_a_sweep():
    assert withhold(["logger.uri=http://a:secret@b,http://c:secret@d"]) == ["logger.uri=http://a:***@b,http://c:***@d"]
    assert complete("http://a:***@b") == "http://a:secret@b" and complete("http://c:***@d") == "http://c:secret@d"


def test_an_address_out_of_a_record(monkeypatch):
    assert complete("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    with pytest.raises(UserError, match=r"records hold no passwords\. Set MLFLOW_TRACKING_URI"):
        complete(SHOWN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        MLflowLogger(SHOWN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", WHOLE)
    assert complete(SHOWN) == WHOLE


def test_records_of_a_run_hold_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", WHOLE)
    cfg = OmegaConf.create({"logger": {"uri": "${oc.env:MLFLOW_TRACKING_URI}"}, "seed": 3})
    text = resolved_yaml(cfg)
    assert OmegaConf.create(text) == {"logger": {"uri": SHOWN}, "seed": 3}
    assert provenance.collect([f"logger.uri={WHOLE}"]).overrides == (f"logger.uri={SHOWN}",)
    assert flatten({"logger": {"uri": WHOLE}}) == {"logger.uri": SHOWN}
    assert MLflowLogger(WHOLE).uri == SHOWN
    assert "secret" in pickle.dumps(MLflowLogger(WHOLE)).decode("latin1"), "a spawned process still needs it"


def test_without_passwords_the_record_is_what_is_composed():
    cfg = OmegaConf.create({"a": "x: y", "b": "${a}", "c": [1.0, None, "~"], "uri": "http://localhost:5000"})
    assert resolved_yaml(cfg) == OmegaConf.to_yaml(cfg, resolve=True)


def test_what_hydra_wrote_of_a_configuration_file(tmp_path):
    records = tmp_path / "0" / ".hydra"
    records.mkdir(parents=True)
    (records / "config.yaml").write_text(f"logger:\n  uri: '{WHOLE}'\n")
    (tmp_path / "multirun.yaml").write_text(f"uri: {WHOLE}\n")
    clean_records(tmp_path / "0")
    assert (records / "config.yaml").read_text() == f"logger:\n  uri: '{SHOWN}'\n"
    assert (tmp_path / "multirun.yaml").read_text() == f"uri: {SHOWN}\n"


def test_logs(caplog):
    former = logging.getLogRecordFactory()
    try:
        clean_log()
        logging.getLogger("mlflow").warning("no answer from %s: %s", WHOLE, ConnectionError(WHOLE))
        logging.getLogger("mlflow").warning("%d clips", 3)
    finally:
        logging.setLogRecordFactory(former)
    assert caplog.messages == [f"no answer from {SHOWN}: {SHOWN}", "3 clips"]
