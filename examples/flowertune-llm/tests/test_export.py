"""The script export.py: a merged model is the base with its adapter, and is written whole."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch
from flowertune_llm import models, prompts, task
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition, load_test, render
from flowertune_llm.kit.testing import APP, offline, posix_only, run_config
from peft import AutoPeftModelForCausalLM, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

QUESTION = "In Python, what does os.path.join(path) do?"
SAME_LOSS = 1e-3


@pytest.fixture
def script() -> ModuleType:
    """The script export.py."""
    spec = importlib.util.spec_from_file_location("export", APP / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(script, monkeypatch, capsys) -> Callable[..., str]:
    """Function that runs the script in this process and returns its output."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
        script.main()
        return capsys.readouterr().out

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(call, capsys) -> Callable[..., str]:
    """Function that runs a command that is refused, and returns the error."""

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            call(*words)
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def base_model(small_model: Path, folder: Path, dtype: str = "float32", **changes: object) -> Path:
    """Save the small model with another configuration."""
    shutil.copytree(small_model, folder)
    described = AutoConfig.from_pretrained(small_model, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(described)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def save_adapter(config: Config, folder: Path, scale: float = 0.5) -> Path:
    """Save an adapter as a run does, with values that change the model's answers."""
    random = np.random.default_rng(0)
    first = models.initial_adapter(config)
    arrays = {n: random.normal(0, scale, v.shape).astype("float32") for n, v in first.items()}
    models.save_adapter(arrays, config, folder)
    return folder


@pytest.fixture
def adapter(small, tmp_path) -> Path:
    """A folder peft_1 for the small model."""
    return save_adapter(Config.from_run_config(small), tmp_path / "peft_1")


def adapted(folder: Path) -> PreTrainedModel:
    return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def exported(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def answer(model: PreTrainedModel, folder: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = render(tokenizer, QUESTION)
    asked = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    told = model.generate(**asked, max_new_tokens=20, do_sample=False)
    return told[0, asked["input_ids"].shape[1] :].tolist()


BOTH_ENDS = "q_proj,lm_head,embed_tokens"


@pytest.mark.parametrize(
    ("targets", "tied"),
    [("", True), ("embed_tokens", True), ("lm_head", True), (BOTH_ENDS, True), (BOTH_ENDS, False)],
)
def test_exported_model_is_the_base_with_its_adapter(
    call, small, small_model, tmp_path, targets, tied
):
    base = base_model(small_model, tmp_path / "base", tie_word_embeddings=tied)
    changes = {"model.name": str(base), "model.lora.target-modules": targets}
    changes |= {"model.prompt-template": "vicuna", "model.dtype": "float32"}
    config = Config.from_run_config(small | changes)
    folder = save_adapter(config, tmp_path / "peft_1")
    told = call("--peft-path", folder, "--output", tmp_path / "new" / "out")
    assert str(tmp_path / "new" / "out") in told
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]

    before, after = adapted(folder), exported(tmp_path / "new" / "out")
    rows = load_test(config)
    losses = [task.evaluate(m, rows, config)[0] for m in (exported(base), before, after)]
    assert losses[2] == pytest.approx(losses[1], abs=SAME_LOSS)
    assert abs(losses[1] - losses[0]) > 3 * SAME_LOSS
    answers = [answer(before, folder), answer(after, tmp_path / "new" / "out")]
    assert answers[0] == answers[1] != answer(exported(base), folder)

    ends = after.get_input_embeddings().weight, after.get_output_embeddings().weight
    stays = tied and "embed" not in targets and "head" not in targets
    assert (ends[0] is ends[1]) == after.config.tie_word_embeddings == stays
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new" / "out")
    assert tokenizer.chat_template == prompts.TEMPLATES["vicuna"]
    assert after.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert after.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("tied", [True, False])
def test_other_kinds_of_lora_are_merged(call, small_model, tmp_path, options, tied):
    """No run makes these, but PEFT does."""
    base = base_model(small_model, tmp_path / "base", tie_word_embeddings=tied)
    lora = LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **options)
    model = get_peft_model(exported(base), lora)
    for value in filter(lambda value: value.requires_grad, model.parameters()):
        value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "peft_1", save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "peft_1")
    call("--peft-path", tmp_path / "peft_1", "--output", tmp_path / "out")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        before, after = model.eval()(tokens).logits, exported(tmp_path / "out")(tokens).logits
        assert (before - exported(base)(tokens).logits).abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("own", "chosen", "kept"),
    [
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_weights_are_kept_in_the_base_s_dtype_or_the_chosen_one(
    call, small, small_model, tmp_path, own, chosen, kept
):
    base = base_model(small_model, tmp_path / "base", own)
    folder = save_adapter(Config.from_run_config(small | {"model.name": str(base)}), tmp_path / "p")
    call("--peft-path", folder, "--output", tmp_path / "out", "--dtype", chosen)
    kinds = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_slice(n).get_dtype() for n in file.keys()} == {kinds[kept]}  # noqa: SIM118
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == kept
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_output_that_is_not_empty_is_left_as_it_is(call, refused, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    told = refused("--peft-path", adapter, "--output", tmp_path / "out")
    assert f"--output {tmp_path / 'out'}: is there already" in told
    (tmp_path / "out" / "mine").unlink()
    call("--peft-path", adapter, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_weights_that_a_dtype_cannot_hold_leave_nothing(refused, small, tmp_path):
    folder = save_adapter(Config.from_run_config(small), tmp_path / "peft_1", scale=1e3)
    output = tmp_path / "new" / "out"
    told = refused("--peft-path", folder, "--output", output, "--dtype", "float16")
    assert "nan in float16; use --dtype float32" in told
    assert not list((tmp_path / "new").iterdir())


def test_adapters_that_are_none_are_refused(refused, adapter, small_model, tmp_path):
    told = refused("--peft-path", small_model, "--output", tmp_path / "out")
    assert "is a whole model, which serves as it is" in told
    told = refused("--peft-path", adapter.parent, "--output", tmp_path / "out")
    assert "adapter_config.json is missing; give a folder peft_<round>" in told
    prompt = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(exported(small_model), prompt).save_pretrained(adapter)
    told = refused("--peft-path", adapter, "--output", tmp_path / "out")
    assert "its peft_type is PROMPT_TUNING, only LORA is merged" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 32, "head_dim": 16},
            r"an adapter for .*, and does not fit .*other \(Runt",
        ),
        ({"num_hidden_layers": 3}, r"does not fit .*other \(ValueError: .* is not in both\)"),
        ({"num_hidden_layers": 1}, r"does not fit .*other \(ValueError: .* is not in both\)"),
    ],
)
def test_bases_of_another_shape_are_refused(
    refused, adapter, small_model, tmp_path, changes, message
):
    other = base_model(small_model, tmp_path / "other", **changes)
    words = ["--peft-path", adapter, "--output", tmp_path / "out", "--base-model"]
    told = refused(*words, other)
    assert re.search(message, told)
    assert told.endswith("--base-model says where the base model is")
    assert not (tmp_path / "out").exists()


def test_bases_that_are_none_are_refused(refused, adapter, small_model, tmp_path):
    words = ["--peft-path", adapter, "--output", tmp_path / "out", "--base-model"]
    told = refused(*words, "/nowhere")
    assert "the base model /nowhere: cannot be loaded" in told
    other = shutil.copytree(small_model, tmp_path / "other")
    described = json.loads((other / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (other / "config.json").write_text(json.dumps(described))
    told = refused(*words, other)
    assert f"the base model {other}: is quantised, and merging needs it in 16 or 32 bits; " in told
    assert not (tmp_path / "out").exists()


SMOLLM2 = {"model.dtype": "float32", "test-examples": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An adapter on SmolLM2, converted anew, after eight steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = Config.from_run_config(run_config() | offline() | SMOLLM2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        model = models.load_model(config)
        models.set_adapter(model, models.initial_adapter(config))
        task.train(model, load_partition(config, 0, 20), config, 1e-3, 1)
        models.save_adapter(models.get_adapter(model), config, folder / "peft_1")
    return folder / "peft_1"


@pytest.mark.thorough
def test_smollm2_says_the_same(call, trained, tmp_path):
    """The same loss to 1e-3 in float32, the same answer in 16 bits; fit for llama.cpp."""
    config = Config.from_run_config(run_config() | offline() | SMOLLM2)
    rows, before = load_test(config), adapted(trained)
    loss, told = task.evaluate(before, rows, config)[0], answer(before, trained)
    for dtype, close in (("float32", SAME_LOSS), ("auto", 0.01)):
        output = tmp_path / dtype
        call("--peft-path", trained, "--output", output, "--dtype", dtype)
        after = exported(output)
        assert task.evaluate(after, rows, config)[0] == pytest.approx(loss, abs=close)
        assert answer(after, output) == told
        assert after.get_input_embeddings().weight is after.get_output_embeddings().weight
    tokenizer = json.loads((output / "tokenizer.json").read_text())
    assert not tokenizer["model"]["byte_fallback"]  # llama.cpp's sign of SentencePiece


@pytest.mark.thorough
@posix_only
def test_ended_export_leaves_nothing(trained, tmp_path):
    output = tmp_path / "new" / "out"
    command = [sys.executable, APP / "export.py", "--peft-path", trained, "--output", output]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while process.poll() is None and not list(output.parent.glob(".out-*/out/model.safetensors")):
        time.sleep(0.01)
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert "ended before the model was whole" in told
    assert not list(output.parent.iterdir())
