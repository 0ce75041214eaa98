"""The run config: complete, typed, refused by name where it is wrong."""

import pytest
from gpu_scaling.config import MAY_CHANGE, Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.executor == "pool"
    assert config.workers == 0
    assert run_config.keys() >= MAY_CHANGE
    assert len(config.__dataclass_fields__) == len(run_config)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("executor", "thread", "one of inline, spawn, pool"),
        ("workers", -1, "a number of at least 0"),
        ("memory-share", 0.0, r"a number in \(0, 1\]"),
        ("recycle-after", 0, "a number of at least 1"),
        ("partitioning", "same", "one of iid, dirichlet"),
        ("clients-to-train", "all", r"a number of at least 1 \(whole number\)"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value, allowed):
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is not valid; allowed: {allowed}"):
        Config.from_run_config(run_config | {key: value})


def test_missing_key_is_named(run_config):
    del run_config["executor"]
    with pytest.raises(ValueError, match="key 'executor' is missing"):
        Config.from_run_config(run_config)
