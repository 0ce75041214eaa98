"""A run folder never holds half a file, and what is damaged or foreign is refused untouched."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from pytorch_example.checkpoint import RunFolder, RunState
from pytorch_example.config import MAY_CHANGE

CONFIG = {"seed": 1, "num-server-rounds": 3, "wandb.mode": "disabled"}


def make_state(server_round: int = 2) -> RunState:
    rng = np.random.default_rng(server_round)
    arrays = {"head.weight": rng.normal(size=(10, 4)).astype(np.float32)}
    return RunState(
        config=CONFIG,
        round=server_round,
        best_round=server_round,
        best_accuracy=0.1 * server_round,
        history=[{"round": n} for n in range(server_round + 1)],
        arrays=arrays,
        server={"head.weight": arrays["head.weight"] * 2},
    )


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    state = make_state()
    folder.save(state, state.arrays)
    return folder


def test_everything_comes_back(folder):
    state, saved = folder.load(CONFIG, MAY_CHANGE), make_state()
    assert (state.round, state.best_round, state.history) == (2, 2, saved.history)
    assert np.array_equal(state.arrays["head.weight"], saved.arrays["head.weight"])
    assert np.array_equal(state.server["head.weight"], saved.server["head.weight"])
    model = safetensors.numpy.load_file(folder.model)
    assert np.array_equal(model["head.weight"], saved.arrays["head.weight"])
    assert json.loads(folder.results.read_text()) == saved.history


def test_only_the_last_and_the_best_stay(folder):
    for server_round in (3, 4):
        state = make_state(server_round)
        state.best_round = 3
        folder.save(state, state.arrays)
    files = sorted(path.name for path in folder.path.glob("*.safetensors"))
    assert files == ["checkpoint.safetensors", "model.safetensors"]
    best = safetensors.numpy.load_file(folder.model)["head.weight"]
    assert np.array_equal(best, make_state(3).arrays["head.weight"])
    assert folder.load(CONFIG, MAY_CHANGE).round == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "foreign"])
def test_damage_is_refused_and_nothing_overwritten(folder, damage):
    content = folder.checkpoint.read_bytes()
    if damage == "foreign":
        folder.checkpoint.write_bytes(folder.model.read_bytes())
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        damaged = {"cut": content[:-100], "flip": flipped, "empty": b"", "text": b"{}" * 100}
        folder.checkpoint.write_bytes(damaged[damage])
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(ValueError, match=r"is damaged|is not a checkpoint"):
        folder.load(CONFIG, MAY_CHANGE)
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_another_config_is_another_run(folder):
    with pytest.raises(ValueError, match=r"seed was 1 in .* and is 2 now"):
        folder.load(CONFIG | {"seed": 2}, MAY_CHANGE)
    assert (
        folder.load(CONFIG | {"num-server-rounds": 9, "wandb.mode": "offline"}, MAY_CHANGE).round
        == 2
    )


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        RunFolder(tmp_path).load(CONFIG, MAY_CHANGE)


def test_two_runs_never_share_a_folder(tmp_path):
    folders = {RunFolder.create(str(tmp_path)).path for _ in range(2)}
    assert len(folders) == 2


def test_a_kill_at_any_moment_leaves_a_whole_round(tmp_path):
    """Save in a loop in another process, kill it at odd moments, and load each time."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_checkpoint import make_state, RunFolder\n"
        "folder, n = RunFolder(Path(sys.argv[2])), 0\n"
        "while True:\n"
        "    state = make_state(n); folder.save(state, state.arrays)\n"
        "    n += 1; print(n, flush=True)\n"
    )
    for attempt in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        writer.stdout.readline()
        time.sleep(0.003 * attempt)
        writer.send_signal(signal.SIGKILL)
        printed = writer.communicate()[0].split()
        last = int(printed[-1]) - 1 if printed else 0
        state = RunFolder(tmp_path).load(CONFIG, MAY_CHANGE)
        assert state.round >= last
        assert np.array_equal(
            state.arrays["head.weight"], make_state(state.round).arrays["head.weight"]
        )
        json.loads((tmp_path / "results.json").read_text())
        safetensors.numpy.load_file(tmp_path / "model.safetensors")
