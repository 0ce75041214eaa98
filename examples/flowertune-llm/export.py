"""Merge a trained adapter into its base model: a folder that transformers and servers load."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import torch
from flowertune_llm import models
from flowertune_llm.config import DTYPES
from flowertune_llm.dataset import render
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# Largest change of the loss when the merged weights are rounded to a dtype.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peft-path", type=Path, required=True, help="a folder peft_<round>")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the model")
    parser.add_argument("--base-model", help="another copy of the base model: a folder or Hub name")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="of the result")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before the model was whole"))
    try:
        print(export(arguments))
    except RuntimeError as error:
        parser.error(str(error))


def export(arguments: argparse.Namespace) -> str:
    """Write the merged model: whole and with the same loss as the adapter's, or not at all.

    Returns:
        the folder, and both losses.

    Raises:
        RuntimeError: something cannot be merged or written; the text names it.
    """
    output = arguments.output.resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RuntimeError(f"--output {output}: is there already; name a new folder")
    model, dtype = load(arguments)
    tokenizer = AutoTokenizer.from_pretrained(arguments.peft_path)
    before = loss(model, tokenizer)
    model = merge(model).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = models.turn_ends(tokenizer, model.generation_config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
            path = Path(temporary, output.name)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            for file in path.glob("*.safetensors"):  # else readable by the owner only
                shutil.copymode(path / "config.json", file)
            del model  # makes room for the one in the folder
            saved = models.load_base(path, f"--output {output}", dtype=torch.float32)
            after = loss(saved, tokenizer)
            told = f"loss of a question {before:.4f} with the adapter, {after:.4f} in {dtype}"
            if not abs(after - before) < ROUNDING[dtype]:  # nan, too
                raise RuntimeError(
                    f"--output {output}: {told}; use --dtype float32, or a sound adapter"
                )
            os.replace(path, output)  # noqa: PTH105
    except (OSError, ValueError, SafetensorError) as error:
        reason = models.in_a_line(error)
        raise RuntimeError(f"--output {output}: cannot be written ({reason})") from None
    return f"Saved {output}; {told}"


def load(arguments: argparse.Namespace) -> tuple[PeftModel, str]:
    """Load base model and adapter in float32, on the CPU.

    Returns:
        the model, and the dtype of the result.

    Raises:
        RuntimeError: the folder holds no adapter of a run, or the base model is not there, is
            quantised, or not the adapter's.
    """
    folder = arguments.peft_path
    if (folder / "config.json").is_file():
        raise RuntimeError(f"--peft-path {folder}: is a whole model, which serves as it is")
    models.check_adapter(folder, "--peft-path")
    adapter = PeftConfig.from_pretrained(folder)
    if adapter.peft_type != "LORA":
        raise RuntimeError(
            f"--peft-path {folder}: its peft_type is {adapter.peft_type.value}, only LORA is "
            "merged; load it with AutoPeftModelForCausalLM"
        )
    made_for = adapter.base_model_name_or_path
    base = models.source(arguments.base_model or made_for)
    what, way_out = f"the base model {base}", "--base-model says where the base model is"
    try:
        described = models.load_from(AutoConfig, base, what)
        if getattr(described, "quantization_config", None):
            raise RuntimeError(f"{what}: is quantised, and merging needs it in 16 or 32 bits")
        model = models.load_base(base, what, dtype=torch.float32)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; {way_out}") from None
    try:
        adapted = models.with_saved_adapter(model, folder, torch_device="cpu")
    except RuntimeError as error:
        raise RuntimeError(
            f"--peft-path {folder} is an adapter for {made_for}, and does not fit {base} "
            f"({error}); {way_out}"
        ) from None
    own = str(described.dtype or torch.float32).removeprefix("torch.")
    return adapted, own if arguments.dtype == "auto" else arguments.dtype


@torch.no_grad()
def loss(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the loss on a question, in nats per token, in the adapter's prompt template."""
    text = render(tokenizer, "Why is the sky blue?")
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(input_ids=tokens, labels=tokens).loss.item()


def merge(model: PeftModel) -> PreTrainedModel:
    """Add the adapter to the weights; embeddings stay tied unless the adapter changes one."""
    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    layers = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    if layers != ends and layers[0].weight is layers[1].weight:
        layers[1].weight = torch.nn.Parameter(layers[1].weight.clone())
        base.config.tie_word_embeddings = False
    return model.merge_and_unload()


if __name__ == "__main__":
    main()
