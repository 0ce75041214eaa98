"""The README's command on Ray reaches the promised losses; and small runs in one process."""

import importlib.util
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from flowertune_llm import server_app
from flowertune_llm.dataset import render
from flowertune_llm.kit.testing import (
    APP,
    Faulty,
    as_run_config,
    in_process,
    kill,
    offline,
    only_run,
    posix_only,
    results,
    run,
    run_as_the_readme_says,
    simulation,
    start,
    stop_at,
)
from flwr.app import Array, ArrayRecord, MessageType
from flwr.serverapp.strategy import FedAdam, FedMedian
from transformers import AutoModelForCausalLM, AutoTokenizer

# The losses that the README promises for the offline run: before training, and after.
LOSS_BEFORE, LOSS_AFTER, TOLERANCE = 3.86, 3.06, 0.1
NODES = 20

pytestmark = posix_only


def loss(entry: dict) -> float:
    return entry["evaluate_metrics_serverapp"]["loss"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder where the offline run was made as the README has it, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    run_as_the_readme_says(folder, "peft_2", "peft_4")
    return folder


def test_offline_run_learns_as_the_readme_says(finished):
    history = results(finished)
    assert loss(history[0]) == pytest.approx(LOSS_BEFORE, abs=TOLERANCE)
    assert loss(history[4]) == pytest.approx(LOSS_AFTER, abs=TOLERANCE)
    assert loss(history[4]) < 0.9 * loss(history[0])
    assert not history[1]["evaluate_metrics_serverapp"]
    assert history[1]["traffic"] == {"down_bytes": history[1]["traffic"]["up_bytes"]} | {
        "up_bytes": pytest.approx(3_686_400, rel=0.01)
    }
    assert len(history[1]["clients"]) == 2


def test_trained_adapter_answers(finished):
    adapter = only_run(finished) / "peft_4"
    question = "In Python, what does os.path.join(path) do?"
    command = [sys.executable, APP / "test.py", "--peft-path", adapter, "--question", question]
    done = run([*command, "--max-new-tokens", 30], finished)
    assert done.returncode == 0, done.stdout
    assert re.search(r"(path|join|director)", done.stdout.splitlines()[-1])


@pytest.fixture
def ask() -> ModuleType:
    """The script test.py."""
    spec = importlib.util.spec_from_file_location("ask", APP / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answer_ends_where_the_model_ends_a_turn(ask, small_model):
    """The tokenizer has another end token, but this model only says <|endoftext|>."""
    model = AutoModelForCausalLM.from_pretrained(small_model)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    torch.nn.init.zeros_(model.model.norm.weight)
    asked = tokenizer(render(tokenizer, "Why?"), add_special_tokens=False)["input_ids"]
    arguments = SimpleNamespace(question="Why?", temperature=0.0, max_new_tokens=20)
    lengths = []
    for ends in ([2], [0, 2]):
        model.generation_config.eos_token_id = ends
        lengths.append(ask.answer(model, tokenizer, arguments).shape[1] - len(asked))
    assert lengths == [20, 1]


def test_adapter_for_another_model_is_refused(
    ask, finished, small_model, tmp_path, monkeypatch, capsys
):
    def refused(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["test.py", "--question", "Why?", *map(str, words)])
        with pytest.raises(SystemExit):
            ask.main()
        return capsys.readouterr().err

    adapter = only_run(finished) / "peft_4"
    told = refused("--peft-path", adapter, "--base-model", small_model)
    assert f"does not fit {small_model}" in told
    told = refused("--peft-path", finished)
    assert "adapter_config.json is missing; give a folder peft_<round>" in told
    strange = shutil.copytree(adapter, tmp_path / "peft_4")
    arrays = safetensors.numpy.load_file(strange / "adapter_model.safetensors")
    arrays["base_model.model.gate.lora_A.weight"] = arrays.pop(min(arrays))
    safetensors.numpy.save_file(arrays, strange / "adapter_model.safetensors")
    told = refused("--peft-path", strange)
    assert re.search(r"is an adapter for .*, and does not fit .* is not in both", told)


@pytest.fixture
def brief(little) -> dict:
    """Three rounds of the small model, two of 20 clients in each, changes in bfloat16."""
    little |= {"num-server-rounds": 3, "strategy.fraction-train": 0.1, "train.seq-length": 96}
    return little | {"strategy.transport-dtype": "bfloat16", "train.evaluate-every-round": 1}


def adapter(folder: Path, server_round: int) -> dict[str, np.ndarray]:
    path = only_run(folder) / f"peft_{server_round}" / "adapter_model.safetensors"
    return safetensors.numpy.load_file(path)


def interrupted_in_round_two(folder: Path, nodes: int, settings: dict) -> list[dict]:
    """Run the app until the second of two clients is to train in round 2; resume to the end."""
    with pytest.raises(KeyboardInterrupt):
        in_process(folder, nodes, stop_at(nodes + 4), **settings)
    assert len(results(folder)) == 2
    return in_process(folder, nodes, **settings, resume_from=str(only_run(folder)))


STRATEGIES = {
    "FedAvg": server_app.FedAvg,
    "FedAdam": partial(FedAdam, eta=0.001, beta_1=0.9, beta_2=0.99),
    "FedMedian": FedMedian,
}


@pytest.mark.parametrize(
    "name", ["FedAvg", "FedAdam", pytest.param("FedMedian", marks=pytest.mark.thorough)]
)
def test_interrupted_and_resumed_gives_the_same_results(name, brief, tmp_path, monkeypatch):
    monkeypatch.setattr(server_app, "FedAvg", STRATEGIES[name])
    whole = in_process(tmp_path / "whole", NODES, **brief)
    assert loss(whole[3]) < loss(whole[0])
    assert interrupted_in_round_two(tmp_path / "part", NODES, brief) == whole
    one, other = adapter(tmp_path / "whole", 3), adapter(tmp_path / "part", 3)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_run_that_does_not_improve_stops_and_keeps_its_adapter(brief, tmp_path, caplog):
    caplog.set_level("INFO", "flwr")
    brief |= {"train.learning-rate-max": 1e-20, "train.learning-rate-min": 0.0}
    history = in_process(tmp_path, NODES, **brief | {"train.save-every-round": 3, "stop-after": 1})
    assert [entry["round"] for entry in history] == [0, 1]
    assert "Stopped after round 1 of 3: no better score in stop-after = 1 rounds" in caplog.text
    assert adapter(tmp_path, 1)  # a round that is not one to keep by itself


@pytest.mark.parametrize(("dtype", "bits"), [("int8", 8.25), ("int4", 4.25)])
def test_few_bits_learn_and_resume(dtype, bits, brief, tmp_path):
    """A resume keeps what rounding left out, at both ends, and the outer momentum."""
    brief |= {"strategy.fraction-train": 1.0, "client-dir": str(tmp_path / "clients")}
    brief |= {"strategy.outer-learning-rate": 0.7, "strategy.outer-momentum": 0.5}
    full = in_process(tmp_path / "full", 2, **brief | {"strategy.transport-dtype": "float32"})
    brief["strategy.transport-dtype"] = dtype
    whole = in_process(tmp_path / "whole", 2, **brief)
    assert loss(whole[3]) - loss(full[3]) < 0.01 * (loss(full[0]) - loss(full[3]))
    for way in ("down_bytes", "up_bytes"):
        few = full[1]["traffic"][way] * bits / 32
        assert whole[1]["traffic"][way] == pytest.approx(few, rel=0.05)  # NumPy's headers
    assert interrupted_in_round_two(tmp_path / "part", 2, brief) == whole
    assert not list(tmp_path.glob("clients/**/*.safetensors"))


def test_run_goes_on_where_another_dtype_is_fast(brief, tmp_path):
    """On a processor without bfloat16, a resumed run goes on in float32."""
    brief |= {"model.dtype": "auto", "strategy.fraction-train": 1.0}
    [_, before] = in_process(tmp_path, 2, **brief | {"num-server-rounds": 1})
    settings = offline(**brief) | {"resume-from": str(only_run(tmp_path))}
    command = [sys.executable, "-m", "flowertune_llm.kit.in_process", "--num-supernodes", 2]
    command += ["--run-config", as_run_config(settings | {"num-server-rounds": 2})]
    done = run(command, tmp_path, ATEN_CPU_CAPABILITY="avx2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout
    [_, one, two] = results(tmp_path)
    assert (one["dtype"], two["dtype"]) == (before["dtype"], "float32")
    assert "Computing in float32 on cpu (model.dtype = 'auto')" in done.stdout
    changed = "model.dtype = 'auto' meant bfloat16 so far; on this machine the run goes on in float"
    assert (changed in done.stdout) == (before["dtype"] == "bfloat16")


def test_lost_adapter_is_there_again_after_a_resume(brief, tmp_path):
    brief |= {"num-server-rounds": 1, "wandb.mode": "offline"}
    in_process(tmp_path, NODES, **brief)
    path = only_run(tmp_path)
    assert list(path.glob("wandb/offline-run-*/*.wandb"))
    (path / "peft_1").rename(tmp_path / "lost")
    in_process(tmp_path, NODES, **brief | {"resume-from": str(path), "wandb.mode": "disabled"})
    made, lost = path / "peft_1", tmp_path / "lost"
    assert {file.name for file in made.iterdir()} == {file.name for file in lost.iterdir()}


def spoil(message, context, answer):
    """Let the first three clients spoil their changes, each in its own way."""
    reply, partition = answer(), context.node_config["partition-id"]
    if message.metadata.message_type != MessageType.TRAIN:
        return reply
    arrays = reply.content["arrays"]
    first = next(iter(arrays))
    if partition == 0:
        arrays[first] = Array(np.array(["no", "numbers"]))
    if partition == 1:
        arrays[first] = Array(np.full(arrays[first].shape, 0x7FC0, np.uint16))  # NaN
    if partition == 2:
        reply.content["arrays"] = ArrayRecord({first: arrays[first]})
    return reply


def test_bad_clients_cost_only_their_own_contribution(brief, tmp_path, caplog):
    changes = {"strategy.fraction-train": 1.0, "num-server-rounds": 1, "strategy.min-replies": 1}
    history = in_process(tmp_path, 4, Faulty(spoil), **brief | changes)
    assert [client["partition"] for client in history[1]["clients"]] == [3]
    for line in (
        "Partition 0 left out of training: its arrays are not named like the global model's",
        "Partition 1 left out of training: base_model.model.model.layers.0.self_attn.q_proj",
        "Partition 2 left out of training: its arrays are not named like the global model's",
    ):
        assert line in caplog.text


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(brief, tmp_path):
    """Killed in the middle of a round on Ray, then resumed in the same folder."""
    brief = offline(**brief)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = run(simulation(APP, brief, NODES), whole)
    assert done.returncode == 0, done.stdout
    kill(start(simulation(APP, brief, NODES), broken, until=lambda log: "[ROUND 3/3]" in log))
    assert len(results(broken)) in (3, 4)
    done = run(simulation(APP, brief | {"resume-from": str(only_run(broken))}, NODES), broken)
    assert done.returncode == 0, done.stdout
    assert results(broken) == results(whole)
    one, other = adapter(whole, 3), adapter(broken, 3)
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.thorough
def test_real_alpaca_in_four_bits_and_sixteen_bit_transport(real_data, tmp_path):
    """Two rounds on real rows of Alpaca-GPT4, base model in NF4, changes in bfloat16."""
    changes = {"dataset": str(real_data / "alpaca-gpt4"), "model.quantization": 4}
    changes |= {"strategy.transport-dtype": "bfloat16", "num-server-rounds": 2}
    changes |= {"test-examples": 32, "train.training-arguments.max-steps": 6}
    history = in_process(tmp_path, NODES, **changes)
    assert loss(history[2]) < loss(history[0])
    assert history[1]["traffic"]["up_bytes"] == pytest.approx(3_686_400 / 2, rel=0.02)
