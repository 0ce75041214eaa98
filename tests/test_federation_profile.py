"""`flwr-profile` on a real federation: a SuperLink and SuperNodes, over TLS."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import posix_only
from repository import ROOT

from kit.federation import NAME, Federation
from kit.federation.__main__ import settings
from kit.federation.certificates import make_certificates
from kit.federation.releases import RELEASE, connection
from kit.settings import as_run_config

APP = ROOT / "examples" / "flowertune-llm"
CHANGES = "num-server-rounds=2 train.evaluate-every-round=0 train.training-arguments.max-steps=2"

pytestmark = [posix_only, pytest.mark.thorough]


def command(run_id: int, app: Path, federation: str, *words: str) -> list[str]:
    program = [sys.executable, "-m", "flowertune_llm.profiler.report", str(run_id)]
    return [*program, "--app", str(app), "--federation", federation, *words]


def error_of(words: list[str]) -> str:
    """Return the last line of a failed command's errors, which is the only one."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    return line


def test_profile_of_a_run_on_a_superlink(tmp_path, monkeypatch):
    """A run is followed to its end, then shown; unknown and unprofiled runs are refused."""
    monkeypatch.chdir(tmp_path)
    with Federation(APP, tmp_path / "federation", warm=True, verbose=False) as federation:
        for partition in range(2):
            federation.start_supernode(partition, 2)
        app = federation.app
        monkeypatch.setenv("FLWR_HOME", str(federation.home("cli")))
        changes = settings(APP, True, f"{CHANGES} profile.enabled=true strategy.min-replies=2")
        run_id = federation.run(as_run_config(changes))
        words = command(run_id, app, NAME, "--live", "--format", "json")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
            assert federation.follow(run_id) == "finished:completed"
            seen = [json.loads(line) for line in following.communicate(timeout=300)[0].splitlines()]
        rounds = [len(profile["rounds"]) for profile in seen]
        assert rounds == sorted(rounds)  # on a busy machine, two may appear as one
        assert rounds[-1] == 3
        statuses = ["running"] * (len(seen) - 1) + ["completed"]
        assert [profile["status"] for profile in seen] == statuses
        counts = {(row["task"], row["scope"]): row["count"] for row in seen[-1]["summary"]}
        assert counts["train", "client"] == 4
        assert counts["aggregate", "server"] == 2
        for row in seen[-1]["network"]:  # one machine, one clock
            assert row["split"] == row["messages"]
            assert 0 < row["down_seconds_mean"] < row["both_seconds_mean"]

        [path] = tmp_path.glob("outputs/*/*/profile.json")
        assert json.loads(path.read_text())["rounds"] == seen[-1]["rounds"]
        page = tmp_path / "page.html"
        words = command(run_id, app, NAME, "--html", str(page))
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert f"Run {run_id}: completed, 2 rounds" in done.stdout
        assert page.read_text().count("<svg") == 2

        assert re.search(r"run 42: Flower says: .*not found", error_of(command(42, app, NAME)))
        refused = federation.run("strategy.min-replies=0")
        assert federation.follow(refused) == "finished:failed"
        assert f"run {refused} has no profile in its log" in error_of(command(refused, app, NAME))
        make_certificates(tmp_path / "other")
        other = connection(federation.apis["control"], tmp_path / "other" / "ca.crt")
        RELEASE.declare(app, federation.home("cli"), "other", other)
        error = error_of(command(run_id, app, "other"))
        assert f"run {run_id}: Flower says: Connection to the SuperLink is unavailable" in error
