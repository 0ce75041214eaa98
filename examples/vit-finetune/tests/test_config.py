"""This example's own settings; the kit tests how settings work."""

import pytest
from vit_finetune.config import Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.dataset == "nelorth/oxford-flowers"
    assert (config.model_name, config.model_weights) == ("vit_b_16", "IMAGENET1K_V1")
    assert config.num_server_rounds == 20
    assert {"cache-dir", "feature-batch-size"} < Config.may_change() < run_config.keys()
    assert len(config.__dataclass_fields__) == len(run_config)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("partitioning", "random", "one of iid, dirichlet"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("model.normalization", "none", "one of imagenet, half"),
        ("label-smoothing", 1.0, r"a number in \[0, 1\)"),
        ("random-crop-min-area", 0.0, r"a number in \(0, 1\]"),
        ("head-start", "warm", "one of zero, closed-form"),
        ("feature-cache", "yes", r"true or false \(truth value\)"),
        ("image-size", 8, "a whole number from 16 to 1024"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value, allowed):
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is not valid; allowed: {allowed}"):
        Config.from_run_config(run_config | {key: value})
