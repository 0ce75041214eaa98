"""This example's own settings; how settings work is tested with the kit."""

import pytest
from pytorch_example.config import Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.num_server_rounds == 10
    assert config.wandb_mode == "auto"
    assert not config.private
    assert len(config.__dataclass_fields__) == len(run_config)
    assert {"wandb.mode", "wandb.project"} < Config.may_change() < run_config.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dirichlet-alpha", 0),
        ("min-partition-size", 1),
        ("test-fraction", 1.0),
        ("fraction-train", 0.0),
        ("fraction-evaluate", 1.1),
        ("local-epochs", 0),
        ("batch-size", "16"),
        ("learning-rate", float("nan")),
        ("learning-rate-decay", 1.01),
        ("momentum", 1.0),
        ("personal-head", "yes"),
        ("server-learning-rate", 0.0),
        ("server-momentum", -0.1),
        ("dp.noise-multiplier", float("inf")),
        ("dp.clipping-norm", 0.0),
        ("dp.repeatable-noise", "yes"),
        ("checkpoint-personal-heads", 1),
        ("wandb.mode", "sometimes"),
        ("wandb.project", ""),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value):
    with pytest.raises(ValueError, match=f"{key} = {value!r} is not valid; allowed: "):
        Config.from_run_config(run_config | {key: value})
