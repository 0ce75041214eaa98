"""The base model, frozen and perhaps quantised; its tokenizer; and the adapter that is trained."""

import math
import os
import re
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.numpy
import torch
import transformers
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flowertune_llm import smollm2
from flowertune_llm.config import Config
from flowertune_llm.kit.precision import fast_dtype
from flowertune_llm.prompts import TEMPLATES

if TYPE_CHECKING:
    from flowertune_llm.kit.replies import Arrays

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json")

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()


def source(name: str) -> str:
    """Return a model's Hub name or folder, for transformers."""
    return str(smollm2.model_folder()) if name == smollm2.NAME else name


def pretrained(loader: Any, config: Config, **options: Any) -> Any:
    """Call `from_pretrained` for the base model.

    Raises:
        RuntimeError: it is not there, or transformers cannot load it.
    """
    return load_from(loader, source(config.model_name), key(config), **options)


def key(config: Config) -> str:
    return f"model.name = '{config.model_name}'"


def load_from(loader: Any, place: str | Path, what: str, **options: Any) -> Any:
    """Call `from_pretrained` for a folder or a Hub name; errors begin with `what`.

    Raises:
        RuntimeError: it is not there, or not whole; the text names the file or tensor.
    """
    try:
        return loader.from_pretrained(place, **options)
    except Exception as error:  # the kind of error depends on the damage
        reason = "no such folder, no such model on the Hub, no access to it, or the Hub cannot be "
        reason += "reached. Without a network use --run-config offline.toml, or set model.name to "
        reason += "a local folder. "
        if Path(place).is_dir():
            damaged = filter(is_damaged, sorted(Path(place).glob("*.safetensors")))
            reason = "".join(f"{path.name} is damaged or was cut off. " for path in damaged)
        raise RuntimeError(f"{what}: cannot be loaded; {reason}({in_a_line(error)})") from None


def is_damaged(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="pt"):
            return False
    except (OSError, safetensors.SafetensorError):
        return True


def load_base(place: str | Path, what: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or a Hub name; errors begin with `what`.

    Raises:
        RuntimeError: as `load_from`; or a weight is missing in all files, and would be random.
    """
    if Path(place, "adapter_config.json").is_file():
        raise RuntimeError(
            f"{what}: holds an adapter (adapter_config.json), not a base model; "
            "merge it into its base model, or give that"
        )
    options["output_loading_info"] = True
    model, found = load_from(AutoModelForCausalLM, place, what, **options)
    if missing := sorted(found["missing_keys"]):
        raise RuntimeError(
            f"{what}: its files lack {len(missing)} of the model's weights, "
            f"{missing[0]} for one, which would be random; save or fetch the model again"
        )
    return model


@lru_cache(maxsize=1)
def vocabulary_size(config: Config) -> int:
    """Return the number of rows of the model's embedding."""
    return pretrained(AutoConfig, config).get_text_config().vocab_size


def check_length(config: Config) -> None:
    """Compare `train.seq-length` with the model's number of positions, if it is limited.

    Raises:
        RuntimeError: there are too few positions.
    """
    described = pretrained(AutoConfig, config).get_text_config()
    limit = getattr(described, "max_position_embeddings", None) or 0
    if 0 < limit < config.seq_length:
        raise RuntimeError(
            f"train.seq-length = {config.seq_length}: {key(config)} has {limit} positions; set it "
            f"to {limit} or less"
        )


@lru_cache(maxsize=1)
def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with the run's prompt template and a padding token.

    Raises:
        RuntimeError: the setting is "chat", and the model has no template of its own.
    """
    tokenizer = pretrained(AutoTokenizer, config)
    if config.prompt_template != "chat":
        tokenizer.chat_template = TEMPLATES[config.prompt_template]
    elif not tokenizer.chat_template:
        raise RuntimeError(
            f"model.prompt-template = 'chat': the tokenizer of {config.model_name} has no chat "
            f"template; choose one of {', '.join(TEMPLATES)}"
        )
    if tokenizer.eos_token is None:
        raise RuntimeError(
            f"{key(config)}: its tokenizer has no token for the end of a "
            "text (eos_token), so no answer could end; set it in tokenizer_config.json"
        )
    padding = tokenizer.pad_token_id
    if padding is None or padding >= vocabulary_size(config):  # any token: it is masked out
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def turn_ends(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """Return the ids of all tokens that end an answer: the model's, tokenizer's and template's."""
    own = generation.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    asked = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    text = tokenizer.apply_chat_template(asked, tokenize=False)
    after = tokenizer(text.rpartition("Because.")[2], add_special_tokens=False)["input_ids"]
    ends.add(next((token for token in after if token in tokenizer.added_tokens_decoder), None))
    return sorted(ends - {None})


@lru_cache(maxsize=1)
def load_turn_ends(config: Config) -> list[int]:
    """Return the ids of all tokens that end an answer of the run's model."""
    try:
        generation = GenerationConfig.from_pretrained(source(config.model_name))
    except OSError:  # the model has no such file
        generation = GenerationConfig.from_model_config(pretrained(AutoConfig, config))
    return turn_ends(load_tokenizer(config), generation)


@lru_cache(maxsize=1)
def load_model(config: Config) -> PeftModel:
    """Load the base model with an adapter without values yet, once for each process.

    Raises:
        RuntimeError: it is not there, or this machine cannot run it.
    """
    check_platform(config)
    options: dict[str, Any] = {"device_map": device_map(config.device_map)}
    if config.quantization:
        options["quantization_config"] = quantization(config.quantization, dtype(config))
    place = source(config.model_name)
    model = load_base(place, key(config), dtype=dtype(config), **options)
    model.requires_grad_(False)
    model.config.use_cache = False
    for module in model.modules():
        # On a CPU, bitsandbytes repacks 4-bit weights for speed in a test without gradients;
        # training after it would raise no error and have no gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient passes the first layer
    return add_adapter(model, config)


def targets(text: str) -> list[str] | str | None:
    """Return PEFT's `target_modules`: names, "all-linear", an expression, or None for its choice.

    Names are made of letters, digits, `_`, `-` and `.`, with commas between them; any other text
    is a regular expression for whole names of modules.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all-linear"] or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        return text.strip()
    return names or None


def add_adapter(model: torch.nn.Module, config: Config) -> PeftModel:
    """Put an adapter on a model, which may be quantised, or without memory.

    Raises:
        RuntimeError: it does not fit; the text names the keys.
    """
    chosen = targets(config.target_modules)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        base_model_name_or_path=source(config.model_name),
    )
    try:
        adapted = get_peft_model(model, lora)
        reached = adapted.targeted_module_names
        for name in chosen if isinstance(chosen, list) else ():
            if not any(f".{module}".endswith(f".{name}") for module in reached):
                raise ValueError(f"it has no {name}")
    except (ValueError, re.error) as error:
        raise RuntimeError(
            f"model.lora.peft-lora-r = {config.lora_r} with model.lora.target-modules = "
            f"'{config.target_modules}' does not fit {config.model_name}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    return adapted


def quantization(bits: int, compute: torch.dtype) -> transformers.BitsAndBytesConfig:
    """Return the settings of NF4 (4 bits, Dettmers et al. 2023) or LLM.int8 (Dettmers et al. 2022).

    Sources: https://arxiv.org/abs/2305.14314 and https://arxiv.org/abs/2208.07339
    """
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
    )


def dtype(config: Config) -> torch.dtype:
    return getattr(torch, dtype_name(config))


def dtype_name(config: Config) -> str:
    """Return this process's dtype: `model.dtype`, or with "auto" the one that is fast here."""
    return fast_dtype(first_device(config)) if config.dtype == "auto" else config.dtype


def precision(config: Config) -> str:
    """Return this process's dtype and device in words."""
    return f"{dtype_name(config)} on {first_device(config)} (model.dtype = '{config.dtype}')"


def first_device(config: Config) -> str:
    """Return the device of the model, or of its first part: "cpu", "cuda:0" or the like."""
    chosen = device_map(config.device_map)
    return "cuda:0" if isinstance(chosen, str) else chosen[""]


def device_map(name: str) -> Any:
    """Return `device_map` for `from_pretrained`: one device, or a way to spread over the GPUs."""
    if name in ("balanced", "balanced_low_0", "sequential"):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return {"": "cuda:0" if name == "cuda" else name}


def check_platform(config: Config) -> None:
    """Try the run's operations in small, before the run.

    Raises:
        RuntimeError: this machine cannot do one of them; the text names the key.
    """
    device = first_device(config)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"model.device-map = '{config.device_map}': this process sees no GPU; in a simulation "
            "use `flwr run . local-sim-gpu`, and without a GPU 'cpu' or 'auto'"
        )
    try:
        x = torch.ones(64, 64, device=device, dtype=dtype(config))
        (x @ x).sum().item()
    except (RuntimeError, AssertionError) as error:
        keys = f"model.device-map = '{config.device_map}', model.dtype = '{config.dtype}'"
        raise RuntimeError(f"{keys}: does not work here ({in_a_line(error)})") from None
    if not config.quantization:
        return
    try:
        import bitsandbytes as bnb

        if config.quantization == 4:
            layer = bnb.nn.Linear4bit(64, 64, compute_dtype=x.dtype, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        layer.to(device)(x).sum().item()
    except Exception as error:  # any part may be missing
        raise RuntimeError(
            f"model.quantization = {config.quantization}: bitsandbytes cannot do it on "
            f"'{device}' here; use 0 ({in_a_line(error)})"
        ) from None


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def empty_model(config: Config) -> PeftModel:
    """Return the model with its adapter as names and shapes, without memory."""
    described = pretrained(AutoConfig, config)
    with torch.device("meta"):
        return add_adapter(AutoModelForCausalLM.from_config(described), config)


def initial_adapter(config: Config) -> "Arrays":
    """Return a new adapter by LoRA (Hu et al. 2021): A random, from the seed, and B zero.

    Source: https://arxiv.org/abs/2106.09685
    """
    return first_values(empty_model(config), config.seed)


def first_values(model: PeftModel, seed: int) -> "Arrays":
    """Return the first values of a model's adapter; the model may be without memory.

    Raises:
        RuntimeError: it has weights with other first values: DoRA's, or copies of the model's.
    """
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, empty in adapter_weights(model).items():
        [kind] = re.findall(r"\.lora_(A|B|embedding_A|embedding_B)(?:\.weight)?$", name) or [""]
        value = torch.zeros(empty.shape)
        if not kind:
            raise RuntimeError(
                f"{name} is no weight of a plain LoRA, and cannot begin without the base model's "
                "values; leave use_dora and modules_to_save out of LoraConfig in models.py"
            )
        if kind == "A":
            torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        elif kind == "embedding_B":
            torch.nn.init.normal_(value, generator=generator)
        arrays[name] = value.numpy()
    return arrays


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's own weights, without an adapted embedding's base, which PEFT adds."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def set_adapter(model: PeftModel, arrays: "Arrays") -> None:
    """Set the values of the model's adapter.

    Raises:
        RuntimeError: they are another adapter's.
    """
    if unlike := arrays.keys() ^ adapter_weights(model).keys():
        raise RuntimeError(f"{min(unlike)} is not in both the adapter received and the model's own")
    set_peft_model_state_dict(model, {name: torch.from_numpy(v) for name, v in arrays.items()})


def get_adapter(model: PeftModel) -> "Arrays":
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, value in adapter_weights(model).items()
    }


def save_adapter(arrays: "Arrays", config: Config, folder: Path) -> None:
    """Write the adapter in PEFT's format, and the tokenizer with the prompt template.

    The folder is there whole or not at all; `AutoPeftModelForCausalLM` and test.py load it.
    """
    if folder.is_dir():
        return
    lora = empty_model(config).peft_config["default"]
    lora.inference_mode = True
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        path = Path(temporary, folder.name)
        path.mkdir()
        lora.save_pretrained(path)
        safetensors.numpy.save_file(arrays, path / "adapter_model.safetensors", {"format": "pt"})
        load_tokenizer(config).save_pretrained(path)
        os.replace(path, folder)  # noqa: PTH105


def check_adapter(folder: Path, what: str) -> None:
    """Check that a folder was written by `save_adapter`; errors begin with `what`.

    Raises:
        RuntimeError: a file is missing; the text names it.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise RuntimeError(
                f"{what} {folder}: {name} is missing; give a folder peft_<round> of a run, "
                "outputs/<date>/<time>/peft_<round>"
            )


def with_saved_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> PeftModel:
    """Put a saved adapter on its base model, and compare all tensors, which PEFT does not.

    Raises:
        RuntimeError: it is another model's adapter; the text names a tensor.
    """
    try:
        adapted = PeftModel.from_pretrained(model, folder, **options).eval()
        with safetensors.safe_open(folder / ADAPTER_FILES[1], framework="pt") as file:
            if unlike := {*file.keys()} ^ adapter_weights(adapted).keys():
                raise ValueError(f"{min(unlike)} is not in both")
    except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise RuntimeError(in_a_line(error)) from None
    return adapted
