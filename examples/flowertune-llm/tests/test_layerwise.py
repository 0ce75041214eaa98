"""Whole models, slice by slice: the mean of the clients' models, through faults and a full disk."""

import re
import resource
from pathlib import Path

import pytest
import torch
from flowertune_llm.shards import Checkpoint, Shard, Tensor, Writer, plan
from flowertune_llm.transport import DTYPES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from .running import (
    APP,
    as_run_config,
    faulty_copy,
    kill,
    only_run,
    posix_only,
    results,
    run,
    simulation,
    start,
)

MEBIBYTE = 2**20
LOSS_OF_WHOLE, LOSS_OF_LONG_ADAPTER = 10.683, 10.760  # of the small Llama after two rounds

pytestmark = posix_only


def save_models(folder: Path, dtype: torch.dtype, count: int = 3, width: int = 256) -> list[Path]:
    """Write a Llama with tied embeddings for each client; the second in many shards."""
    folders = []
    for partition in range(count):
        torch.manual_seed(partition)
        config = LlamaConfig(
            vocab_size=2000,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        folders.append(folder / f"site-{partition}")
        shard = "1MB" if partition == 1 else "5GB"
        LlamaForCausalLM(config).to(dtype).save_pretrained(folders[-1], max_shard_size=shard)
    return folders


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def mean(folders: list[Path]) -> dict[str, torch.Tensor]:
    models = [tensors(folder) for folder in folders]
    return {name: sum(m[name].double() for m in models) / len(models) for name in models[0]}


def command(folder: Path, app: Path = APP, nodes: int = 3, **changes: object) -> list[str]:
    settings = {
        "model.name": f"{folder}/site-{{partition}}",
        "train.disable": True,
        "strategy.fraction-train": 1.0,
        "aggregation.slice-megabytes": 1,
        "aggregation.shard-megabytes": 2,
    } | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return simulation(app, as_run_config(settings), nodes)


def assert_mean(result: Path, folders: list[Path], dtype: torch.dtype) -> None:
    got, wanted = tensors(result), mean(folders)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.double(), wanted[name], rtol=torch.finfo(dtype).eps, atol=1e-7
        )


OTHERS = [pytest.param(n, marks=pytest.mark.thorough) for n in DTYPES if n != "bfloat16"]


@pytest.mark.parametrize("name", ["bfloat16", *OTHERS])
def test_slices_make_the_mean_of_all_models(name, tmp_path):
    folders = save_models(tmp_path, DTYPES[name])
    done = run(command(tmp_path), tmp_path)
    assert done.returncode == 0, done.stdout
    result = only_run(tmp_path) / "model_1"
    assert len(list(result.glob("model-*-of-*.safetensors"))) > 1
    assert_mean(result, folders, DTYPES[name])
    model = AutoModelForCausalLM.from_pretrained(result)
    assert model.dtype == DTYPES[name]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    [entry] = results(tmp_path)[1:]
    assert entry["traffic"]["up_bytes"] == sum(v.nbytes for v in tensors(folders[0]).values())
    assert "Nothing is trained: one round" in done.stdout


@pytest.mark.thorough
def test_all_at_once_makes_the_same(tmp_path):
    folders = save_models(tmp_path, torch.bfloat16)
    done = run(command(tmp_path, aggregation__mode="all_at_once"), tmp_path)
    assert done.returncode == 0, done.stdout
    assert_mean(only_run(tmp_path) / "model_1", folders, torch.bfloat16)


@pytest.fixture
def faulty_app(tmp_path) -> Path:
    """A copy of the app whose client fails as the environment says."""
    return faulty_copy(tmp_path)


def test_client_that_fails_is_in_no_slice(faulty_app, tmp_path, monkeypatch):
    """One raises, one sends NaN, one too little, one has another model; two are well."""
    folders = save_models(tmp_path, torch.bfloat16, 5)
    save_models(tmp_path / "other", torch.bfloat16, 1, width=128)[0].rename(tmp_path / "site-5")
    for partition, fault in enumerate(("raise", "nan", "short"), 1):
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    done = run(command(tmp_path, faulty_app, 6), tmp_path)
    assert done.returncode == 0, done.stdout
    for text in (
        "Partition 5 left out of training: not the others' model: model.",
        "Starting over with 4 clients",
        "the disk is gone",
        "holds NaN or infinity",
        "bytes for model.layers.",
        "Starting over with 2 clients",
    ):
        assert text in done.stdout, done.stdout
    assert_mean(only_run(tmp_path) / "model_1", [folders[0], folders[4]], torch.bfloat16)


def test_failure_can_end_the_run(faulty_app, tmp_path, monkeypatch):
    save_models(tmp_path, torch.bfloat16)
    monkeypatch.setenv("FAULT_1", "nan")
    done = run(command(tmp_path, faulty_app, aggregation__on_failure="stop"), tmp_path)
    assert done.returncode != 0
    assert "partition 1: model.layers." in done.stdout
    assert not list(only_run(tmp_path).glob("model_*"))


def test_killed_run_carries_on_from_the_last_whole_shard(tmp_path):
    folders = save_models(tmp_path, torch.float32, 2, width=1024)
    words = command(tmp_path, nodes=2, aggregation__shard_megabytes=9)
    shard = "outputs/*/*/.model_1-partial/model-00002-of-*.safetensors"
    kill(start(words, tmp_path, until=lambda _: list(tmp_path.glob(shard))))
    path = only_run(tmp_path)
    assert not (path / "model_1").exists()
    assert not (path / ".model_1-partial" / "config.json").exists()
    done = run(
        command(tmp_path, nodes=2, aggregation__shard_megabytes=9, resume_from=str(path)), tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* of \d+ shards are whole already", done.stdout)
    assert_mean(path / "model_1", folders, torch.float32)


@pytest.fixture
def three_shards() -> list[Shard]:
    return plan([Tensor(f"layer.{i}", "F32", (MEBIBYTE,)) for i in range(3)], 2**22, MEBIBYTE)


def fill(writer: Writer, shards: list[Shard], value: bytes) -> None:
    for shard in shards[writer.whole :]:
        writer.begin(shard)
        for piece in shard.slices:
            writer.write(piece, memoryview(value * piece.nbytes))
        writer.end(shard)


def test_full_disk_leaves_whole_shards(three_shards, tmp_path):
    """A limit on the size of files stands in for the disk: the same error from the same call."""
    folder, before = tmp_path / "model_1", resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Writer(folder, three_shards, "these clients")
    fill(writer, three_shards[:1], b"a")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, before[1]))
    try:
        with pytest.raises(RuntimeError, match="1 of 3 shards are whole and stay; make room"):
            fill(writer, three_shards, b"b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not folder.exists()
    again = Writer(folder, three_shards, "these clients")
    assert again.whole == 1
    fill(again, three_shards, b"b")
    again.finish({"config.json": b"{}"})
    values = tensors(folder)
    assert [bytes(values[f"layer.{i}"].numpy().data)[:1] for i in range(3)] == [b"a", b"b", b"b"]
    assert Writer(tmp_path / "model_2", three_shards, "one").whole == 0


def test_shards_of_other_clients_are_not_mixed_in(three_shards, tmp_path):
    writer = Writer(tmp_path / "model_1", three_shards, "these clients")
    fill(writer, three_shards[:1], b"a")
    assert Writer(tmp_path / "model_1", three_shards, "other clients").whole == 0


def test_too_little_room_is_said_before_the_first_slice(tmp_path):
    shards = plan([Tensor("large", "F32", (10**15,))], 2**30, 2**50)
    with pytest.raises(RuntimeError, match=r"4000000.0 GB are needed there and .* GB are free"):
        Writer(tmp_path / "model_1", shards, "")


def test_damaged_checkpoints_are_named(tmp_path):
    [folder] = save_models(tmp_path, torch.float16, 1)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        RuntimeError, match=r"model.safetensors: is \d+ bytes long, its header says"
    ):
        Checkpoint(folder)
    path.write_bytes(b"no safetensors")
    with pytest.raises(RuntimeError, match="is damaged, or no safetensors file"):
        Checkpoint(folder)
    path.unlink()
    with pytest.raises(RuntimeError, match=r"holds no .safetensors files"):
        Checkpoint(folder)


def test_trained_models_are_averaged_over_rounds(small, tmp_path):
    """The whole small Llama is trained, and sent to the clients again; they keep nothing."""
    small |= {"model.lora.peft-lora-r": 0, "num-server-rounds": 2, "strategy.fraction-train": 1.0}
    small |= {"aggregation.client-dir": str(tmp_path / "clients")}
    done = run(simulation(APP, as_run_config(small), nodes=2), tmp_path)
    assert done.returncode == 0, done.stdout
    history = results(tmp_path)
    losses = [e["evaluate_metrics_serverapp"].get("loss") for e in history]
    assert losses[2] < losses[0]
    assert losses[2] == pytest.approx(LOSS_OF_WHOLE, rel=2e-3)
    assert history[2]["traffic"]["down_bytes"] > history[2]["traffic"]["up_bytes"]
    assert not list((tmp_path / "clients").rglob("*.safetensors"))
    assert (only_run(tmp_path) / "model_2" / "tokenizer.json").is_file()


@pytest.mark.thorough
def test_long_adapters_travel_in_slices(small, tmp_path):
    """An adapter of several slices; whole in one message it gives the same loss."""
    small |= {"model.lora.peft-lora-r": 2000, "model.lora.peft-lora-alpha": 2000}
    small |= {"num-server-rounds": 2, "aggregation.slice-megabytes": 1}
    done = run(simulation(APP, as_run_config(small), nodes=4), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Aggregated 1 models" in done.stdout
    history = results(tmp_path)
    loss = history[2]["evaluate_metrics_serverapp"]["loss"]
    assert loss == pytest.approx(LOSS_OF_LONG_ADAPTER, rel=1e-3)
    assert history[1]["traffic"]["up_bytes"] > 3 * MEBIBYTE
    assert (only_run(tmp_path) / "peft_2" / "adapter_model.safetensors").is_file()
