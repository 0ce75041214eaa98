"""VRAM a client and tokens a second on a CUDA device, without Ray, data or a Hub.

A Llama of OpenLLaMA 3B v2's shape with random weights (they take as much memory and time as real
ones), LoRA r = 32, batches of 16 times 512 tokens, in 4-bit, 8-bit and bfloat16. Writes
results/flowertune-llm-gpu.json; without a CUDA device it says so and ends well. `--on-cpu` runs
the same code small on the CPU, to try it, and writes nothing.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SEED, declared_config, in_words, measurement
from datasets import Dataset
from flowertune_llm import models, task
from flowertune_llm.config import Config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

APP = ROOT / "examples" / "flowertune-llm"
# Source: the model's config on the Hub, openlm-research/open_llama_3b_v2
OPEN_LLAMA_3B = {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
PRECISIONS = {"4-bit": 4, "8-bit": 8, "bfloat16": 0}
STEPS = 5


def make_model(shape: dict[str, int], device: str, folder: Path) -> None:
    """Write a model folder with random weights in bfloat16, and a tokenizer of a few words."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(dtype="bfloat16", **shape)).to(torch.bfloat16)
    model.save_pretrained(folder)


def measure(name: str, folder: Path, batch: int, length: int) -> dict[str, Any]:
    """Return tokens a second and the most device memory of one client's training."""
    run_config = declared_config(APP)
    run_config |= {"model.name": str(folder), "model.quantization": PRECISIONS[name]}
    run_config["train.training-arguments.max-steps"] = STEPS
    run_config["train.training-arguments.per-device-train-batch-size"] = batch
    config = Config.from_run_config(run_config)
    model = models.load_model(config)
    models.set_adapter(model, models.initial_adapter(config))
    torch.manual_seed(SEED)
    rows = torch.randint(4, 1000, (batch * STEPS, length)).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    task.train(model, data, config, 1e-5, 0)  # warms up
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    task.train(model, data, config, 1e-5, 0)
    seconds = time.perf_counter() - began
    return {
        "precision": name,
        "tokens_a_second": STEPS * batch * length / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-cpu", action="store_true", help="try the script; writes nothing")
    on_cpu = parser.parse_args().on_cpu
    small = not torch.cuda.is_available()
    if small and not on_cpu:
        print(f"skipped: no CUDA device for PyTorch {torch.__version__} here; --on-cpu to try")
        return
    shape, batch, length = (SMALL, 2, 32) if small else (OPEN_LLAMA_3B, 16, 512)
    with measurement("flowertune-llm-gpu", seeds=(SEED,), trial=small) as result:
        rows, left_out = [], {}
        with tempfile.TemporaryDirectory() as folder:
            make_model(shape, "cpu" if small else "cuda", Path(folder))
            for name in PRECISIONS:
                models.load_model.cache_clear()
                gc.collect()
                if not small:
                    torch.cuda.empty_cache()
                try:
                    rows.append(measure(name, Path(folder), batch, length))
                except RuntimeError as error:
                    left_out[name] = str(error)
                    print(f"   {name} left out: {error}")
                    continue
                print("  ", in_words(rows[-1]))
        result |= {"shape": shape, "batch": batch, "length": length}
        result |= {"rows": rows, "left_out": left_out}


if __name__ == "__main__":
    main()
