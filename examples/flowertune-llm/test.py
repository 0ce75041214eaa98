"""Question to a trained adapter, no test: its name is that of the file in Flower's own example."""

import argparse
from pathlib import Path

import torch
from flowertune_llm import models
from flowertune_llm.config import DTYPES
from flowertune_llm.dataset import render
from flowertune_llm.kit.precision import fast_dtype
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TextStreamer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peft-path", type=Path, required=True, help="a folder peft_<round>")
    parser.add_argument("--question", required=True, help="what to ask")
    parser.add_argument("--base-model", help="another copy of the base model: a folder or Hub name")
    parser.add_argument("--quantization", type=int, default=0, choices=(0, 4, 8), help="bits")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="to compute in")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length of the answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest")
    arguments = parser.parse_args()
    try:
        models.check_adapter(arguments.peft_path, "--peft-path")
        tokenizer = AutoTokenizer.from_pretrained(arguments.peft_path)
        model = load(arguments)
    except RuntimeError as error:
        parser.error(str(error))
    answer(model, tokenizer, arguments)


def load(arguments: argparse.Namespace) -> PeftModel:
    """Load the base model that the adapter names, and the adapter on top.

    Raises:
        RuntimeError: the base model is not there, or is not the adapter's.
    """
    place = models.device_map("auto")
    chosen = fast_dtype(place[""]) if arguments.dtype == "auto" else arguments.dtype
    dtype = getattr(torch, chosen)
    options = {"dtype": dtype, "device_map": place}
    if arguments.quantization:
        options["quantization_config"] = models.quantization(arguments.quantization, dtype)
    made_for = PeftConfig.from_pretrained(arguments.peft_path).base_model_name_or_path
    base = models.source(arguments.base_model or made_for)
    try:
        model = models.load_base(base, f"the base model {base}", **options)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; --base-model says where the base model is") from None
    try:
        return models.with_saved_adapter(model, arguments.peft_path)
    except RuntimeError as error:
        raise RuntimeError(
            f"--peft-path {arguments.peft_path} is an adapter for {made_for}, and does not fit "
            f"{base} ({error})"
        ) from None


def answer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace
) -> torch.Tensor:
    """Print the answer word by word, to a question in the adapter's prompt template.

    Returns:
        the tokens of question and answer, int64 (1, length).
    """
    prompt = render(tokenizer, arguments.question)
    tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    sampling = (
        {"do_sample": True, "temperature": arguments.temperature}
        if arguments.temperature > 0
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    return model.generate(
        **tokens,
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=models.turn_ends(tokenizer, model.generation_config),
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )


if __name__ == "__main__":
    main()
