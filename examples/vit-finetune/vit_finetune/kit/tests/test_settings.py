# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Settings are complete and typed; wrong ones are refused by name."""

import re
from dataclasses import dataclass

import pytest

from ..settings import split_or_share
from .tiny import RUN_CONFIG, Config


def test_every_key_becomes_a_field():
    config = Config.from_run_config(RUN_CONFIG)
    assert (config.seed, config.learning_rate, config.kind) == (42, 0.5, "plain")
    assert len(config.__dataclass_fields__) == len(RUN_CONFIG)
    assert Config.key_of("learning_rate") == "local.learning-rate"


def test_whole_numbers_serve_as_numbers():
    assert Config.from_run_config(RUN_CONFIG | {"round-timeout": 7}).round_timeout == 7.0


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("dataset", " ", "a non-empty text (text)"),
        ("num-server-rounds", 0, "a number of at least 1 (whole number)"),
        ("num-server-rounds", 2.5, "a number of at least 1 (whole number)"),
        ("num-server-rounds", True, "a number of at least 1 (whole number)"),
        ("min-replies", "2", "a number of at least 1 (whole number)"),
        ("max-update-ratio", 1.0, "a number above 1 (number)"),
        ("round-timeout", float("inf"), "a number above 0 (number)"),
        ("seed", -1, "a number of at least 0 (whole number)"),
        ("fraction-train", 0.0, "a number in (0, 1] (number)"),
        ("fraction-evaluate", 1.1, "a number in [0, 1] (number)"),
        ("local.learning-rate", float("nan"), "a number above 0 (number)"),
        ("kind", "other", "one of plain, clipped (text)"),
    ],
)
def test_a_bad_value_is_refused_by_name(key, value, allowed):
    message = f"run config: {key} = {value!r} is not valid; allowed: {allowed}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Config.from_run_config(RUN_CONFIG | {key: value})


@dataclass(frozen=True)
class WithSplit(Config):
    test_split: str = split_or_share()


@pytest.mark.parametrize("value", ["test", "validation", "test.clean", "20%", "0.5%", "99.9%"])
def test_a_split_or_a_share_is_accepted(value):
    assert WithSplit.from_run_config(RUN_CONFIG | {"test-split": value}).test_split == value


@pytest.mark.parametrize(
    "value", ["", "train", "train[:20%]", "0%", "0.0%", "100%", "20 %", "-5%", "a+b", "0.2"]
)
def test_no_split_and_no_share_is_refused(value):
    with pytest.raises(ValueError, match=f"test-split = '{re.escape(value)}' is not valid"):
        WithSplit.from_run_config(RUN_CONFIG | {"test-split": value})


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"key 'seed' is missing; pyproject\.toml lists all"):
        Config.from_run_config({k: v for k, v in RUN_CONFIG.items() if k != "seed"})


def test_what_may_change_when_a_run_is_resumed():
    assert Config.may_change() == {
        *("num-server-rounds", "stop-after", "min-replies", "max-update-ratio", "round-timeout"),
        *("output-dir", "resume-from", "waves"),
    }
