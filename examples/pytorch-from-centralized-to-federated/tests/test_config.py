"""This example's own settings are those of cifar.py; the kit tests how settings work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from centralized_to_federated.config import Config

APP = Path(__file__).parents[1]


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.dataset == "uoft-cs/cifar10"
    assert config.partitioning == "same"
    assert Config.may_change() < run_config.keys()
    assert len(config.__dataclass_fields__) == len(run_config)


def test_centralised_project_has_the_same_defaults(run_config):
    done = subprocess.run(
        [sys.executable, APP / "cifar.py", "--help"], capture_output=True, text=True, check=True
    )
    text = " ".join(done.stdout.split("options:")[1].split())
    for key in ("dataset", "network", "batch-size", "learning-rate", "momentum", "seed"):
        default = re.search(rf"--{key} .*?\(default: (.*?)\)", text)[1]
        assert default == str(run_config[key]), key


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("partitioning", "random", "one of same, iid, dirichlet"),
        ("network", "resnet", "one of compact, tutorial"),
        ("server-momentum", 1.0, r"a number in \[0, 1\)"),
        ("local-epochs", 0, "a number of at least 1"),
        ("batch-size", "many", r"a number of at least 1 \(whole number\)"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value, allowed):
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is not valid; allowed: {allowed}"):
        Config.from_run_config(run_config | {key: value})
