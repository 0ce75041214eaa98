"""Whole models of real SuperNodes are averaged slice by slice, although one of them dies."""

from pathlib import Path

import pytest
import torch
from on_this_machine import posix_only, wait
from repository import ROOT
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from kit.federation import Federation

APP = ROOT / "examples" / "flowertune-llm"
EXAMPLES = (1, 3, 2)  # weights of the SuperNodes
CHANGES = "train.disable=true strategy.fraction-train=1.0 aggregation.slice-megabytes=1"

pytestmark = [posix_only, pytest.mark.thorough]


def save_model(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_killed_supernode_is_in_no_slice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [save_model(tmp_path / f"site-{i}", i) for i in range(len(EXAMPLES))]
    with Federation(APP, tmp_path / "federation", warm=True, verbose=False) as federation:
        for partition, examples in enumerate(EXAMPLES):
            more = f"num-examples={examples}"
            federation.start_supernode(partition, len(EXAMPLES), node_config=more)
        run_id = federation.run(f"model.name='{tmp_path}/site-{{partition}}' {CHANGES}")
        doomed = federation.parts["supernode-2"]
        wait(lambda: doomed.log.read_text().count("query.slice") >= 2, 600, "serving two slices")
        doomed.stop()
        assert federation.follow(run_id) == "finished:completed"
        log = federation.log_of_run(run_id).read_text()
    assert "Partition 2 fails: " in log
    assert "Starting over with 2 clients" in log
    [folder] = tmp_path.glob("outputs/*/*/model_1")
    result = load_file(folder / "model.safetensors")
    weights = [examples / sum(EXAMPLES[:2]) for examples in EXAMPLES[:2]]
    for name, value in result.items():
        wanted = sum(m[name].double() * w for m, w in zip(models, weights, strict=False))
        torch.testing.assert_close(value.double(), wanted, rtol=2**-7, atol=1e-9)
