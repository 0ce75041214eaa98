"""Fixtures of several tests."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vit_finetune.config import Config
from vit_finetune.kit import testing
from vit_finetune.models import BUILDERS


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()


@pytest.fixture
def offline(run_config, tmp_path) -> Callable[..., Config]:
    """Make the config of offline.toml, in float32, with a cache of its own, and changes."""
    changed = testing.offline() | {"precision": "float32", "cache-dir": str(tmp_path / "cache")}
    config = Config.from_run_config(run_config | changed)
    return lambda **changes: dataclasses.replace(config, **changes)


@pytest.fixture
def bright(tmp_path, monkeypatch) -> Callable[[float], str]:
    """Save weights of a model "bright", whose features are the pixels above a threshold.

    White is 1 with the normalization "half", and more than 2 with "imagenet".
    """

    def build() -> nn.Sequential:
        return nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Flatten())

    def save(threshold: float) -> str:
        model = build()
        nn.init.constant_(model[1].weight, 1 / 3)
        nn.init.constant_(model[1].bias, -threshold)
        torch.save(model.state_dict(), tmp_path / "bright.pth")
        return str(tmp_path / "bright.pth")

    monkeypatch.setitem(BUILDERS, "bright", build)
    return save


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    return testing.named_folder("FLOWER_EXAMPLES_DATA", "oxford-flowers")
