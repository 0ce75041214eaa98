"""Fixtures of several tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flowertune_llm import smollm2
from flowertune_llm.kit import testing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()


@pytest.fixture
def offline(run_config) -> dict[str, Any]:
    """The run config with offline.toml, as an app receives it."""
    return run_config | testing.offline()


@pytest.fixture
def little(small_model) -> dict[str, Any]:
    """Changes that make an offline run take seconds: the small model, a few steps."""
    return {
        "model.name": str(small_model),
        "test-examples": 16,
        "train.training-arguments.max-steps": 3,
    }


@pytest.fixture
def small(offline, little) -> dict[str, Any]:
    """The run config with offline.toml for the small model, as an app receives it."""
    return offline | little


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a Llama of two layers, at random, and SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("small-llama")
    tokenizer = AutoTokenizer.from_pretrained(smollm2.model_folder())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    return testing.named_folder("FLOWER_EXAMPLES_DATA", "alpaca-gpt4")
