"""Whole models slice by slice: the mean of the clients' models, despite faults and a full disk."""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowertune_llm import server_app, whole_models
from flowertune_llm.config import Config
from flowertune_llm.encoding import FLOATS
from flowertune_llm.kit.flower import RunFailed
from flowertune_llm.kit.testing import (
    APP,
    in_process,
    kill,
    offline,
    only_run,
    posix_only,
    simulation,
    start,
    stop_at,
)
from flowertune_llm.layerwise.choice import choose
from flowertune_llm.layerwise.shards import (
    FILE,
    INDEX,
    Checkpoint,
    Shard,
    Span,
    Tensor,
    Writer,
    open_checkpoint,
    plan,
)
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedMedian
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from .faulty_client import FaultyClient

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


@pytest.fixture
def told(caplog):
    """The log, with information lines."""
    caplog.set_level("INFO", "flwr")
    return caplog


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def mean(folders: list[Path]) -> dict[str, torch.Tensor]:
    models = [tensors(folder) for folder in folders]
    return {name: sum(m[name].double() for m in models) / len(models) for name in models[0]}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return settings that average the models of `save_models`."""
    averaging = {
        "model.name": f"{folder}/site-{{partition}}",
        "train.disable": True,
        "strategy.fraction-train": 1.0,
        "aggregation.slice-megabytes": 1,
        "aggregation.shard-megabytes": 2,
    }
    return averaging | changes


def assert_mean(result: Path, folders: list[Path], dtype: torch.dtype) -> None:
    got, wanted = tensors(result), mean(folders)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.double(), wanted[name], rtol=torch.finfo(dtype).eps, atol=1e-7
        )


@pytest.mark.parametrize("name", FLOATS)
def test_slices_make_the_mean_of_all_models(name, tmp_path, told):
    folders = save_models(tmp_path, FLOATS[name])
    [_, entry] = in_process(tmp_path, 3, **settings(tmp_path))
    result = only_run(tmp_path) / "model_1"
    assert len(list(result.glob("model-*-of-*.safetensors"))) > 1
    assert_mean(result, folders, FLOATS[name])
    model = AutoModelForCausalLM.from_pretrained(result)
    assert model.dtype == FLOATS[name]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert entry["traffic"]["up_bytes"] == sum(v.nbytes for v in tensors(folders[0]).values())
    assert "Nothing is trained: one round" in told.text
    assert f"Model: {result}" in told.text
    assert "Aggregation: layer by layer, since whole models are averaged" in told.text


def test_all_at_once_makes_the_same(tmp_path, told):
    folders = save_models(tmp_path, torch.bfloat16)
    in_process(tmp_path, 3, **settings(tmp_path), aggregation__mode="all_at_once")
    assert_mean(only_run(tmp_path) / "model_1", folders, torch.bfloat16)
    assert 'Aggregation: all models at once, since aggregation.mode = "all_at_once"' in told.text


def test_client_that_fails_is_in_no_slice(tmp_path, monkeypatch, told):
    """One raises, one sends NaN, one too little, one has another model; two are good."""
    folders = save_models(tmp_path, torch.bfloat16, 5)
    save_models(tmp_path / "other", torch.bfloat16, 1, width=128)[0].rename(tmp_path / "site-5")
    for partition, fault in enumerate(("raise", "nan", "short"), 1):
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    in_process(tmp_path, 6, FaultyClient(), **settings(tmp_path))
    for text in (
        "Partition 5 left out of training: not the others' model: model.",
        "Starting over with 4 clients",
        "the disk is gone",
        "holds NaN or infinity",
        "bytes for model.layers.",
        "Starting over with 2 clients",
    ):
        assert text in told.text
    assert_mean(only_run(tmp_path) / "model_1", [folders[0], folders[4]], torch.bfloat16)


def test_failure_can_end_the_run(tmp_path, monkeypatch):
    save_models(tmp_path, torch.bfloat16)
    monkeypatch.setenv("FAULT_1", "nan")
    with pytest.raises(RunFailed, match=r"partition 1: model\.layers\."):
        in_process(
            tmp_path, 3, FaultyClient(), **settings(tmp_path), aggregation__on_failure="stop"
        )
    assert not list(only_run(tmp_path).glob("model_*"))


def assert_carries_on(folder: Path, folders: list[Path]) -> None:
    """Resume a run that was stopped in the middle of its model, and check the result."""
    path = only_run(folder)
    assert not (path / "model_1").exists()
    assert not (path / ".model_1-partial" / "config.json").exists()
    in_process(folder, 2, **settings(folder), resume_from=str(path))
    assert_mean(path / "model_1", folders, torch.float32)


def test_interrupted_run_carries_on_from_the_last_whole_shard(tmp_path, told):
    folders = save_models(tmp_path, torch.float32, 2)
    with pytest.raises(KeyboardInterrupt):
        in_process(tmp_path, 2, stop_at(14), **settings(tmp_path))
    assert_carries_on(tmp_path, folders)
    assert re.search(r"[1-9]\d* of \d+ shards are whole already", told.text)


@pytest.mark.thorough
def test_killed_run_carries_on_from_the_last_whole_shard(tmp_path, told):
    folders = save_models(tmp_path, torch.float32, 2, width=1024)
    words = simulation(APP, offline(**settings(tmp_path)), 2)
    shard = "outputs/*/*/.model_1-partial/model-00002-of-*.safetensors"
    kill(start(words, tmp_path, until=lambda _: list(tmp_path.glob(shard))))
    assert_carries_on(tmp_path, folders)
    assert re.search(r"[1-9]\d* of \d+ shards are whole already", told.text)


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
    with pytest.raises(
        RuntimeError, match=r"holds no model in safetensors \(model.safetensors, or"
    ):
        Checkpoint(folder)


def old_shards(folder: Path, gone: bool) -> None:
    """Put shards of an earlier save beside a model's file, or their index alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.model.norm.weight, 7)
    whole = folder / FILE
    whole.rename(folder / "newer")
    model.save_pretrained(folder, max_shard_size="1MB")
    (folder / "newer").rename(whole)
    if gone:
        for path in folder.glob("model-*"):
            path.unlink()


@pytest.mark.parametrize("gone", [False, True], ids=["shards", "index"])
def test_file_comes_before_what_an_earlier_save_has_left(tmp_path, gone):
    """transformers has the same order."""
    folders = save_models(tmp_path, torch.float32)
    old_shards(folders[2], gone)
    loaded = AutoModelForCausalLM.from_pretrained(folders[2]).state_dict()
    in_process(tmp_path, 3, **settings(tmp_path))
    models = [load_file(folder / FILE) for folder in (folders[0], folders[2])]
    models.append(tensors(folders[1]))
    for name, value in tensors(only_run(tmp_path) / "model_1").items():
        assert torch.equal(models[1][name], loaded[name])
        torch.testing.assert_close(value, sum(m[name] for m in models) / 3)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE, {"format": "pt"})


def describe(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_tensor_twice(folder: Path) -> None:
    shutil.copy(folder / FILE, folder / "model-00002-of-00002.safetensors")
    (folder / FILE).rename(folder / "model-00001-of-00002.safetensors")
    names = ["model.norm.weight", "model.embed_tokens.weight"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip(names, shards, strict=True))}))


def index_of_another(folder: Path) -> None:
    (folder / FILE).rename(folder / "model-00001-of-00001.safetensors")
    weight_map = {"model.other.weight": "model-00001-of-00001.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


NO_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "adapter": (
        lambda f: shutil.copy(f / FILE, f / "adapter_model.safetensors"),
        "adapter_model.safetensors lies beside the model",
    ),
    "adapter config": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "adapter_config.json lies beside the model, and transformers would load it",
    ),
    "stranger": (
        lambda f: shutil.copy(f / FILE, f / "optimizer.safetensors"),
        "optimizer.safetensors lies beside the model and is no part of it",
    ),
    "twice": (same_tensor_twice, "is in another file of the model, too"),
    "other index": (index_of_another, "names model.other.weight, which is not in model-00001"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no model, since it has no config"),
    "no weights": (lambda f: (f / FILE).unlink(), "holds no model in safetensors"),
    "no tensors": (lambda f: rewrite(f, dict.clear), "holds no tensors in F32, F16, BF16"),
    "quantised": (
        lambda f: describe(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"has a quantization_config \(gptq\), and quantised weights cannot be averaged",
    ),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_is_refused_by_name(kind, tmp_path):
    """All clients have the fault: the run ends at once, with the cause."""
    spoil, message = NO_MODELS[kind]
    for folder in save_models(tmp_path, torch.float32, 2, width=32):
        spoil(folder)
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, 2, **settings(tmp_path))
    assert not list(only_run(tmp_path).glob("model_*"))


@pytest.mark.parametrize("mode", ["layerwise", "all_at_once"])
def test_what_has_no_mean_ends_the_run(mode, tmp_path, told):
    """Whole numbers are carried over if all clients have the same; else the run ends."""
    alike, unlike = tmp_path / "alike", tmp_path / "unlike"
    for folder in (alike, unlike):
        for number, path in enumerate(save_models(folder, torch.float32, width=32)):
            steps = torch.tensor([3, number if folder == unlike else 4])
            rewrite(path, lambda weights, steps=steps: weights.update(steps=steps))
    changes = {"aggregation__mode": mode}
    in_process(alike, 3, **settings(alike), **changes)
    result = only_run(alike) / "model_1"
    assert tensors(result)["steps"].tolist() == [3, 4]
    name = "model.embed_tokens.weight"
    weights = [tensors(path)[name] for path in alike.glob("site-*")]
    torch.testing.assert_close(tensors(result)[name], sum(weights) / 3)
    with pytest.raises(RunFailed, match=r"steps, I64, differs between the clients, and only F32"):
        in_process(unlike, 3, **settings(unlike), **changes)
    assert not list(only_run(unlike).glob("model_*"))
    assert "Starting over" not in told.text


def test_last_client_s_own_model_is_not_the_result(tmp_path, monkeypatch, told):
    """A federated model needs at least two clients, unless the user sets another number."""
    folders = save_models(tmp_path, torch.bfloat16, 2)
    monkeypatch.setenv("FAULT_1", "nan")
    with pytest.raises(RunFailed, match=r"1 clients are left, strategy.min-replies = 2; .* NaN"):
        in_process(tmp_path, 2, FaultyClient(), **settings(tmp_path))
    assert not list(only_run(tmp_path).glob("model_*"))
    only_run(tmp_path).rename(tmp_path / "first")
    alone = settings(tmp_path, **{"strategy.min-replies": 1})
    in_process(tmp_path, 2, FaultyClient(), **alone)
    assert_mean(only_run(tmp_path) / "model_1", folders[:1], torch.bfloat16)


def test_model_that_was_replaced_is_opened_anew(tmp_path):
    """The new file was moved there, and has the same size and age."""
    path = tmp_path / FILE
    for value in (1.0, 2.0):
        save_file({"weight": torch.full((4,), value)}, tmp_path / "new")
        os.utime(tmp_path / "new", (0, 0))
        (tmp_path / "new").rename(path)
        source = open_checkpoint(tmp_path)
        assert source is open_checkpoint(tmp_path)
        read = torch.frombuffer(bytearray(source.read(Span("weight", 0, 16))), dtype=torch.float32)
        assert read.tolist() == [value] * 4


def test_trained_models_are_averaged_over_rounds(little, tmp_path):
    """The whole small Llama is trained and sent to the clients again; no files stay there."""
    little |= {"model.lora.peft-lora-r": 0, "num-server-rounds": 2, "strategy.fraction-train": 1.0}
    little |= {"client-dir": str(tmp_path / "clients")}
    history = in_process(tmp_path, 2, **little)
    losses = [e["evaluate_metrics_serverapp"].get("loss") for e in history]
    assert losses[2] < losses[0]
    assert losses[2] == pytest.approx(LOSS_OF_WHOLE, rel=2e-3)
    assert history[2]["traffic"]["down_bytes"] > history[2]["traffic"]["up_bytes"]
    assert not list((tmp_path / "clients").rglob("*.safetensors"))
    assert (only_run(tmp_path) / "model_2" / "tokenizer.json").is_file()


@pytest.mark.parametrize("rank", [0, 8])
def test_each_site_trains_the_model_in_its_own_folder(rank, little, small_model, tmp_path):
    """Either all weights, or an adapter; the server uses the model of site 0."""
    shutil.copytree(small_model, tmp_path / "site-0")
    shutil.copytree(small_model, tmp_path / "site-1")
    little |= {"num-server-rounds": 2, "strategy.fraction-train": 1.0}
    little |= {"model.lora.peft-lora-r": rank, "train.seq-length": 64}
    little |= {"client-dir": str(tmp_path / "clients")}
    name = str(tmp_path / "site-{partition}")
    wanted = in_process(tmp_path / "same", 2, **little)
    assert in_process(tmp_path / "own", 2, **little | {"model.name": name}) == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_steps_of_a_whole_model_are_not_rounded_away(dtype, small, small_model, tmp_path):
    """A step of 1e-5 is below the last bit of most weights in bfloat16."""
    small |= {"model.lora.peft-lora-r": 0, "num-server-rounds": 1, "model.dtype": dtype}
    small |= {"train.learning-rate-max": 1e-5, "train.learning-rate-min": 1e-5}
    small |= {"train.evaluate-every-round": 0, "train.seq-length": 64}
    model = whole_models.load(Config.from_run_config(small), small_model)
    assert model(torch.tensor([[1, 2]])).logits.dtype == getattr(torch, dtype)
    small |= {"client-dir": str(tmp_path / "clients")}
    in_process(tmp_path, 2, **small | {"output-dir": str(tmp_path / "outputs")})
    before, after = tensors(small_model), tensors(only_run(tmp_path) / "model_1")
    assert {value.dtype for value in after.values()} == {torch.float32}
    layers = [name for name in after if ".layers." in name]  # not embeddings of unseen tokens
    changed = sum((after[name] != before[name]).sum().item() for name in layers)
    assert changed > 0.95 * sum(after[name].numel() for name in layers)


@pytest.fixture
def long(little) -> dict[str, Any]:
    """Settings for an adapter of several slices."""
    little |= {"model.lora.peft-lora-r": 2000, "model.lora.peft-lora-alpha": 2000}
    return little | {"num-server-rounds": 2, "aggregation.slice-megabytes": 1}


def test_long_adapters_travel_in_slices(long, tmp_path, told):
    """An adapter of several slices; whole in one message it gives the same loss."""
    history = in_process(tmp_path, 4, **long)
    assert re.search(
        r"Aggregation: layer by layer, since the adapter has 3\.\d MB and "
        r"aggregation\.slice-megabytes = 1",
        told.text,
    )
    assert "Aggregated 2 models" in told.text
    loss = history[2]["evaluate_metrics_serverapp"]["loss"]
    assert loss == pytest.approx(LOSS_OF_LONG_ADAPTER, rel=1e-3)
    assert history[1]["traffic"]["up_bytes"] > 3 * MEBIBYTE
    assert (only_run(tmp_path) / "peft_2" / "adapter_model.safetensors").is_file()


def test_other_strategy_is_never_skipped_without_a_word(long, tmp_path, monkeypatch, told):
    monkeypatch.setattr(server_app, "FedAvg", FedMedian)
    message = r"FedMedian would never be asked to aggregate: the adapter .*slice-megabytes = 1, so"
    with pytest.raises(ValueError, match=message):
        in_process(tmp_path, 2, **long)
    assert not (tmp_path / "outputs").exists()
    in_process(tmp_path, 2, **long | {"aggregation.mode": "all_at_once", "num-server-rounds": 1})
    assert 'Aggregation: FedMedian, since aggregation.mode = "all_at_once"' in told.text


def test_whole_models_are_for_fedavg_alone(small):
    class OwnFedAvg(FedAvg):
        pass

    whole = Config.from_run_config(small | {"model.lora.peft-lora-r": 0})
    assert choose(whole, FedAvg(), ArrayRecord()).by_layers
    with pytest.raises(ValueError, match=r"OwnFedAvg .* whole models .* or train an adapter"):
        choose(whole, OwnFedAvg(), ArrayRecord())
    short = choose(Config.from_run_config(small), OwnFedAvg(), ArrayRecord())
    assert (short.by_layers, short.words.split(",")[0]) == (False, "OwnFedAvg")
