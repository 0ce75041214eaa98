"""Base models in every precision, on the CPU; adapters that PEFT loads; refused models."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from flowertune_llm import models, prompts, task, whole_models
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition, load_test
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
)

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


@pytest.fixture
def tied_model(small_model, tmp_path) -> Path:
    """The small Llama with one matrix for its input and output embeddings."""
    folder = shutil.copytree(small_model, tmp_path / "tied")
    described = AutoConfig.from_pretrained(small_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(described).save_pretrained(folder)
    return folder


TARGETS = {
    "": 4,
    "q_proj, v_proj": 4,
    "self_attn.q_proj,layers.1.mlp.up_proj": 3,
    "all-linear": 14,
    r".*\.1\..*(q|v)_proj": 2,
    "embed_tokens": 1,
    "lm_head": 1,
    "q_proj,lm_head,embed_tokens": 4,
    r".*(embed_tokens|lm_head)": 2,
}


EMBEDDINGS = [targets for targets in TARGETS if "embed" in targets or "head" in targets]


@pytest.mark.parametrize(
    ("targets", "base_model", "quantization"),
    [
        *((targets, "small_model", 0) for targets in TARGETS),
        *((targets, "tied_model", 0) for targets in EMBEDDINGS),
        *((targets, "tied_model", 4) for targets in ("all-linear", "q_proj,lm_head,embed_tokens")),
    ],
)
def test_adapter_leaves_the_base_as_it_is(
    small, request, tmp_path, targets, base_model, quantization
):
    """With any targets, only adapter weights are made, trained and saved."""
    folder, close = request.getfixturevalue(base_model), 0.02 if quantization else 1e-5
    changes = {"model.name": str(folder), "model.lora.target-modules": targets}
    changes |= {"model.dtype": "float32", "model.quantization": quantization}
    changes |= {"train.seq-length": 64, "train.training-arguments.max-steps": 2}
    config = Config.from_run_config(small | changes)
    first = models.initial_adapter(config)
    assert len(first) == 2 * TARGETS[targets]
    assert all("lora_" in name for name in first)
    model = models.load_model.__wrapped__(config)
    tokens = torch.tensor([load_test(config)[0]["input_ids"]])
    with torch.no_grad(), model.disable_adapter():
        base = model.eval()(tokens).logits
    models.set_adapter(model, first)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, base, rtol=close, atol=close)
    task.train(model, load_partition(config, 0, 20), config, 0.01, 1)
    trained = models.get_adapter(model)
    assert all((trained[name] != first[name]).any() for name in first)
    models.save_adapter(trained, config, tmp_path / "peft_1")
    options = {"quantization_config": models.quantization(4, torch.float32)} if quantization else {}
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "peft_1", dtype=torch.float32, **options
    )
    with torch.no_grad():
        answered = model.eval()(tokens).logits
        torch.testing.assert_close(loaded(tokens).logits, answered, rtol=close, atol=close)
        with loaded.disable_adapter():
            torch.testing.assert_close(loaded(tokens).logits, base, rtol=close, atol=close)


def test_weights_that_need_the_base_are_refused(small):
    """DoRA's magnitudes and copies of whole modules cannot begin with zeros."""
    described = AutoConfig.from_pretrained(small["model.name"])
    for extra in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}):
        lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **extra)
        model = get_peft_model(AutoModelForCausalLM.from_config(described), lora)
        with pytest.raises(RuntimeError, match="is no weight of a plain LoRA"):
            models.first_values(model, 42)


def test_adapter_of_another_model_is_refused(small):
    config = Config.from_run_config(small)
    first = models.initial_adapter(config)
    first.pop(name := min(first))
    with pytest.raises(RuntimeError, match=f"{name} is not in both"):
        models.set_adapter(models.load_model(config), first)


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


def lose(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10_000)


def call_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose, r"its files lack 1 of the model's weights, model\.layers\.1\.mlp\.up_proj\.weight"),
        (cut_off, r"cannot be loaded; model\.safetensors is damaged or was cut off\. \(Safet"),
        (call_adapter, r"holds an adapter \(adapter_config\.json\), not a base model"),
    ],
)
def test_base_model_that_is_not_whole_is_refused(small, small_model, tmp_path, spoil, message):
    """For adapters on it, for training all its weights, and for questions to it."""
    spoil(folder := shutil.copytree(small_model, tmp_path / "model"))
    config = Config.from_run_config(small | {"model.name": str(folder)})
    for load in (models.load_model, lambda config: whole_models.load(config, folder)):
        with pytest.raises(RuntimeError, match=f"model.name = '{folder}': {message}"):
            load(config)


@pytest.mark.parametrize("kind", [LlamaConfig, GPT2Config])
def test_more_tokens_than_positions_are_refused(small, tmp_path, kind):
    kind(max_position_embeddings=128).save_pretrained(tmp_path)
    changes = {"model.name": str(tmp_path), "train.seq-length": 129}
    with pytest.raises(RuntimeError, match=r"train.seq-length = 129: .* has 128 positions; set it"):
        models.check_length(Config.from_run_config(small | changes))
    models.check_length(Config.from_run_config(small | changes | {"train.seq-length": 128}))


def test_padding_side_changes_nothing(small, small_model, tmp_path):
    """Padding on the left would shift positions of a model with one embedding for each."""
    losses = []
    for side in ("left", "right"):
        folder = tmp_path / side
        tokenizer = AutoTokenizer.from_pretrained(small_model, padding_side=side)
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        described = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
        described.initializer_range = 0.5
        AutoModelForCausalLM.from_config(described).save_pretrained(folder)
        config = Config.from_run_config(
            small | {"model.name": str(folder), "model.dtype": "float32"}
        )
        losses.append(task.evaluate(models.load_model(config), load_test(config), config)[0])
        assert models.load_tokenizer(config).padding_side == side
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("eos", "own", "template", "ends"),
    [
        ("<|im_end|>", None, "chat", ["<|im_end|>"]),
        ("<|endoftext|>", None, "chat", ["<|endoftext|>", "<|im_end|>"]),
        ("<|endoftext|>", 0, "vicuna", ["<|endoftext|>"]),
        ("<|endoftext|>", [0, 1], "vicuna", ["<|endoftext|>", "<|im_start|>"]),
        ("<|endoftext|>", [1], "chat", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    ],
)
def test_answers_end_as_model_tokenizer_and_template_say(small_model, eos, own, template, ends):
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    tokenizer.eos_token = eos
    tokenizer.chat_template = prompts.TEMPLATES.get(template, tokenizer.chat_template)
    found = models.turn_ends(tokenizer, GenerationConfig(eos_token_id=own))
    assert tokenizer.convert_ids_to_tokens(found) == ends


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "/nowhere/llama"}, "model.name = '/nowhere/llama': cannot be loaded"),
        ({"model.lora.target-modules": "query"}, "target-modules = 'query' does not fit"),
        ({"model.lora.target-modules": "q_proj,v_prj"}, "'q_proj,v_prj' does not fit .* no v_prj"),
        ({"model.lora.target-modules": "norm"}, "target-modules = 'norm' does not fit"),
        ({"model.lora.target-modules": ".*(q"}, r"target-modules = '\.\*\(q' does not fit"),
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
