import logging

import pytest
from omegaconf import OmegaConf

from vidlab.lab.train import warn_of_no_buckets


@pytest.mark.parametrize(
    ("max_tokens", "typed", "told"),
    [
        (None, ["seed=1", "data.bucketing.tail=drop"], "data.bucketing.tail=drop: without data.bucketing.max_tokens"),
        (None, ["seed=1", "data.bucketing.max_tokens=null"], None),
        (64, ["data.bucketing.tail=drop"], None),
    ],
)
def test_settings_of_buckets_that_do_nothing_are_named(max_tokens, typed, told, caplog):
    cfg = OmegaConf.create({"data": {"bucketing": {"max_tokens": max_tokens, "tail": "drop"}}})
    with caplog.at_level(logging.WARNING):
        warn_of_no_buckets(cfg, typed)
    assert told in caplog.text if told else not caplog.text
