"""Base models in every precision, on the CPU; adapters that PEFT loads; what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flowertune_llm import models, task, transport
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition, load_test
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

PRECISIONS = [("float32", 0), ("bfloat16", 0), ("bfloat16", 4), ("bfloat16", 8)]
OTHERS = [("float16", 0), ("float32", 4), ("float32", 8), ("float16", 4), ("float16", 8)]


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [*PRECISIONS, *(pytest.param(*other, marks=pytest.mark.thorough) for other in OTHERS)],
)
def test_every_precision_trains(small, tmp_path, quantization, dtype):
    changes = {"model.quantization": quantization, "model.dtype": dtype, "train.seq-length": 64}
    changes |= {"train.learning-rate-max": 0.01}
    config = Config.from_run_config(small | changes)
    model = models.load_model(config)
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear4bit" in kinds, "Linear8bitLt" in kinds) == (
        quantization == 4,
        quantization == 8,
    )
    models.set_adapter(model, models.initial_adapter(config))
    before, _ = task.evaluate(model, load_test(config), config)
    losses = [task.train(model, load_partition(config, 0, 20), config, 0.01, r) for r in range(4)]
    after, perplexity = task.evaluate(model, load_test(config), config)
    assert losses[-1] < losses[0]
    assert after < before
    assert perplexity == pytest.approx(np.exp(after))

    adapter = models.get_adapter(model)
    models.save_adapter(adapter, config, tmp_path / "peft_4")
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "peft_4",
        dtype=models.dtype(config),
        **(
            {"quantization_config": models.quantization(quantization, models.dtype(config))}
            if quantization
            else {}
        ),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "peft_4")
    assert tokenizer.chat_template == models.load_tokenizer(config).chat_template
    tokens = torch.tensor([load_test(config)[0]["input_ids"]])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=0.02, atol=0.02
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which is asked instead")
def test_auto_is_what_the_processor_computes_fast(small):
    config = Config.from_run_config(small)
    assert config.dtype == "auto"
    found = torch.cpu.get_capabilities()
    fast = (found.get("avx512_bf16") or found.get("amx_bf16")) and (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
    assert models.dtype(config) == (torch.bfloat16 if fast else torch.float32)
    four = models.load_model(Config.from_run_config(small | {"model.quantization": 4}))
    kinds = {m.compute_dtype for m in four.modules() if hasattr(m, "compute_dtype")}
    assert kinds == {models.dtype(config)}


def test_initial_adapter_is_lora_s(small):
    config = Config.from_run_config(small)
    adapter = models.initial_adapter(config)
    assert adapter.keys() == models.get_adapter(models.load_model(config)).keys()
    for name, value in adapter.items():
        assert value.dtype == np.float32
        assert value.any() == ("lora_A" in name)
    again = models.initial_adapter(config)
    assert all((adapter[name] == again[name]).all() for name in adapter)


def test_gradient_checkpointing_changes_no_loss(small):
    losses = []
    for checkpointing in (False, True):
        config = Config.from_run_config(
            small | {"model.gradient-checkpointing": checkpointing, "model.dtype": "float32"}
        )
        model = models.load_model(config)
        models.set_adapter(model, models.initial_adapter(config))
        losses.append(task.train(model, load_partition(config, 0, 20), config, 0.01, 1))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_sixteen_bits_halve_the_bytes(small):
    adapter = models.initial_adapter(Config.from_run_config(small))
    full = transport.encode(adapter, "float32")
    assert all((transport.decode(full)[name] == adapter[name]).all() for name in adapter)
    for dtype, error in (("bfloat16", 2**-8), ("float16", 2**-11)):
        half = transport.encode(adapter, dtype)
        assert transport.size(half) == pytest.approx(transport.size(full) / 2, rel=0.05)
        for name, value in transport.decode(half).items():
            np.testing.assert_allclose(value, adapter[name], rtol=error, atol=1e-7)


def broken_tokenizer(small_model: Path, folder: Path, **values: object) -> Path:
    shutil.copytree(small_model, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in values.items():
        setattr(tokenizer, name, value)
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_tokenizer_without_a_chat_template_or_padding(small, small_model, tmp_path):
    folder = broken_tokenizer(small_model, tmp_path / "m", chat_template=None, pad_token=None)
    settings = small | {"model.name": str(folder)}
    with pytest.raises(RuntimeError, match=r"has no chat template; choose one of vicuna, alpaca"):
        models.load_tokenizer(Config.from_run_config(settings))
    config = Config.from_run_config(settings | {"model.prompt-template": "alpaca"})
    assert models.load_tokenizer(config).pad_token == "<|im_end|>"
    assert task.evaluate(models.load_model(config), load_test(config), config)[0] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "/nowhere/llama"}, "model.name = '/nowhere/llama': cannot be loaded"),
        ({"model.lora.target-modules": "query"}, "target-modules = 'query' does not fit"),
        pytest.param(
            {"model.device-map": "cuda"},
            "model.device-map = 'cuda': this process sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(small, changes, message):
    with pytest.raises(RuntimeError, match=message):
        models.load_model(Config.from_run_config(small | changes))
