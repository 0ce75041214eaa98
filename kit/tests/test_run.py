# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A run's folder never holds half a file; a damaged or foreign one is refused, and not changed."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.config import parse_config_args
from safetensors.numpy import load_file

from ..run import CHECKPOINT, CONFIG, CURVES, MODEL, RESULTS, Run
from .tiny import RUN_CONFIG, Config


def make(server_round: int, folder: Path | None = None, **changes: Any) -> Run:
    """Return a run after a round, to be saved in a folder; for round -1, one resumed from there."""
    resume = {"resume-from": str(folder)} if folder and server_round < 0 else {}
    run_config = RUN_CONFIG | changes | resume
    run = Run(Config.from_run_config(run_config), run_config)
    if server_round >= 0:
        rng = np.random.default_rng(server_round)
        run.folder, run.round, run.best_round = folder or Path(), server_round, server_round
        run.history = [{"round": n} for n in range(server_round + 1)]
        run.arrays = {name: rng.normal(size=(10, 4)).astype(np.float32) for name in ("z", "a")}
        run.kept = {"": {"velocity": [run.arrays["a"] * 2], "count": server_round}}
    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    make(2, tmp_path).save()
    return tmp_path


def test_everything_comes_back(folder):
    run, saved = make(-1, folder), make(2)
    assert (run.round, run.best_round, run.history) == (2, 2, saved.history)
    assert list(run.arrays) == ["z", "a"]  # in the order of the model, not of the file
    assert all(np.array_equal(run.arrays[name], saved.arrays[name]) for name in saved.arrays)
    assert np.array_equal(run.kept[""]["velocity"][0], saved.kept[""]["velocity"][0])
    assert run.kept[""]["count"] == 2
    assert np.array_equal(load_file(folder / MODEL)["a"], saved.arrays["a"])
    assert json.loads((folder / RESULTS).read_text()) == saved.history


def test_only_the_last_and_the_best_stay(folder):
    for server_round in (3, 4):
        run = make(server_round, folder)
        run.best_round = 3
        run.save()
    assert sorted(p.name for p in folder.glob("*.safetensors")) == [CHECKPOINT, MODEL]
    assert np.array_equal(load_file(folder / MODEL)["a"], make(3).arrays["a"])
    assert make(-1, folder).round == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "foreign"])
def test_damage_is_refused_and_nothing_overwritten(folder, damage):
    path = folder / CHECKPOINT
    content = path.read_bytes()
    if damage == "foreign":
        path.write_bytes((folder / MODEL).read_bytes())
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        damaged = {"cut": content[:-100], "flip": flipped, "empty": b"", "text": b"{}" * 100}
        path.write_bytes(damaged[damage])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"is damaged|is not a checkpoint"):
        make(-1, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_other_settings_are_another_run(folder):
    changes: dict[str, Any] = {"num-server-rounds": 9, "waves": 3}
    with pytest.raises(ValueError, match=r"seed was 42 in .* and is 2 now; set it back") as refusal:
        make(-1, folder, seed=2, **changes)
    words = re.search(r"--run-config ('.*'), or start", str(refusal.value))
    told = parse_config_args(shlex.split(words[1]))
    assert told["resume-from"] == str(folder)
    assert make(-1, None, **told).round == 2
    assert {key: told[key] for key in changes} == changes
    assert told.get("seed", 42) == 42  # an app's own default is left out


def test_nan_is_null_for_others_and_stays_nan_in_the_checkpoint(tmp_path):
    """JSON has neither NaN nor infinity, but a resumed run needs them."""
    odd = {"accuracy": math.nan, "loss": math.inf, "each": [1.0, -math.inf]}
    changes = {"output-dir": str(tmp_path), "max-update-ratio": math.inf}
    with make(-1, **changes) as run:
        parts = ("train_metrics", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
        run.history = [{"round": 0, "clients": [{"partition": 0, "eval_acc": math.nan}]}]
        run.history[0] |= dict.fromkeys(parts, odd)
        run.round = 0
        run.save()
    text = (run.folder / RESULTS).read_text() + (run.folder / CONFIG).read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(",", "").split())
    [entry] = json.loads((run.folder / RESULTS).read_text())
    assert entry["train_metrics"] == {"accuracy": None, "loss": None, "each": [1.0, None]}
    assert json.loads((run.folder / CONFIG).read_text())["max-update-ratio"] is None
    assert (run.folder / CURVES).read_bytes().startswith(b"\x89PNG")
    again = make(-1, run.folder, **changes).history[0]["train_metrics"]
    assert math.isnan(again["accuracy"])
    assert (again["loss"], again["each"]) == (math.inf, [1.0, -math.inf])


def test_an_infinite_setting_is_the_same_when_a_run_begins_anew(tmp_path):
    """config.json has null for infinity."""
    endless = {"max-update-ratio": math.inf, "seed": 3}
    with make(-1, **endless, **{"output-dir": str(tmp_path)}) as run:
        pass
    assert make(-1, run.folder, **endless).round == -1
    with pytest.raises(ValueError, match="seed was 3"):
        make(-1, run.folder)


def test_what_interrupts_a_run_hears_what_is_safe(tmp_path, caplog):
    """SystemExit is how Flower's ServerApp process is interrupted."""
    with pytest.raises(SystemExit), make(-1, **{"output-dir": str(tmp_path)}):
        sys.exit(0)
    assert "Interrupted; no round is saved yet" in caplog.text
    run = make(2, **{"output-dir": str(tmp_path)})
    run.history = []
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert f"Interrupted; round 2 is safe: resume-from='{run.folder}'" in caplog.text


def test_a_run_stopped_before_its_first_test_begins_anew(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(RUN_CONFIG))
    assert make(-1, tmp_path).round == -1


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        make(-1, tmp_path)


def test_two_runs_never_share_a_folder(tmp_path):
    folders = set()
    for _ in range(2):
        with make(-1, **{"output-dir": str(tmp_path)}) as run:
            folders.add(run.folder)
    assert len(folders) == 2


SAVE_FOR_EVER = """
import sys, importlib
from pathlib import Path
sys.path.insert(0, sys.argv[1])
make = importlib.import_module(sys.argv[2]).make
for server_round in range(10**6):
    make(server_round, Path(sys.argv[3])).save()
    print(server_round, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_kill_at_any_moment_leaves_a_whole_round(tmp_path):
    """Save in a loop in another process, kill it at odd moments, and load each time."""
    depth = __name__.count(".")
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(Path(__file__).parents[depth]), __name__]
    for attempt in range(5):
        writer = subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(0.003 * attempt)
        writer.send_signal(signal.SIGKILL)
        printed = writer.communicate()[0].split()
        run = make(-1, tmp_path)
        assert run.round >= int(printed[-1] if printed else 0)
        assert np.array_equal(run.arrays["a"], make(run.round).arrays["a"])
        json.loads((tmp_path / RESULTS).read_text())
        load_file(tmp_path / MODEL)
