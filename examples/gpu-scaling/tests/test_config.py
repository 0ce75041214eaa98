"""This example's own settings; how settings work is tested with the kit."""

import pytest
from gpu_scaling.config import Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.executor == "pool"
    assert config.workers == 0
    assert {"executor", "workers", "min-clients"} < Config.may_change() < run_config.keys()
    assert len(config.__dataclass_fields__) == len(run_config)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("executor", "thread", "one of inline, spawn, pool"),
        ("workers", -1, "a number of at least 0"),
        ("memory-share", 0.0, r"a number in \(0, 1\]"),
        ("recycle-after", 0, "a number of at least 1"),
        ("partitioning", "same", "one of iid, dirichlet, natural"),
        ("clients-to-train", "all", r"a number of at least 1 \(whole number\)"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value, allowed):
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is not valid; allowed: {allowed}"):
        Config.from_run_config(run_config | {key: value})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"population": 10}, "clients-to-train = 20 is more than population = 10; draw fewer"),
        ({"partitioning": "natural"}, "'natural' needs the column that says whose each row is"),
        ({"client-column": "writer"}, "partitioning = 'iid' and client-column = 'writer'"),
        (
            {"partitioning": "natural", "client-column": "writer", "examples-per-client": 5},
            "examples-per-client = 5: with partitioning = 'natural' clients have the examples",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(run_config, changes, told):
    with pytest.raises(ValueError, match=told):
        Config.from_run_config(run_config | changes)
