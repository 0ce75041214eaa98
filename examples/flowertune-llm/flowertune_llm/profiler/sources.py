"""Sources of a run's profile: the file beside its results, or its log on a SuperLink."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowertune_llm.kit.federation.releases import RELEASE
from flowertune_llm.profiler.recorder import FILE, MARK

FLWR = str(Path(sys.executable).with_name("flwr"))
ANSWER_SECONDS = 30  # for Flower's program to start, and a SuperLink to answer
NOISE = "Loading project|Success$|Creating a new|Using SuperLink|Displaying information"
LOOK_SECONDS = 0.5  # between two looks at a file
Profile = dict[str, Any]  # as in profile.json: run_ids, status, rounds


class NoProfile(Exception):
    """A missing profile; the text says why, in one line."""


def from_folder(folder: Path, live: bool) -> Iterator[Profile]:
    """Yield the profile in an output folder; if live, after each change until the run's end.

    Raises:
        NoProfile: there is none.
    """
    path, seen = folder / FILE, 0
    if not path.is_file():
        raise NoProfile(
            f"{folder} holds no {FILE}: that run was not profiled; start it with "
            "--run-config profile.enabled=true"
        )
    while True:
        changed = path.stat().st_mtime_ns
        if changed != seen:
            seen, profile = changed, read(path)
            yield profile
            if not live or profile["status"] != "running":
                return
        time.sleep(LOOK_SECONDS)


def read(path: Path) -> Profile:
    try:
        profile = json.loads(path.read_text())
        return {name: profile[name] for name in ("run_ids", "status", "rounds")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoProfile(f"{path} cannot be read ({error!r})") from None


def folder_of(run: str, output_dir: Path) -> Path:
    """Return the output folder of a run, named by its folder or by its id.

    Raises:
        NoProfile: there is no such folder, or none with that run.
    """
    if Path(run).is_dir():
        return Path(run)
    if not run.isdecimal():
        raise NoProfile(f"{run} is no folder; name a run id, or outputs/<date>/<time>")
    for path in sorted(output_dir.glob(f"*/*/{FILE}"), reverse=True):
        if run in read(path)["run_ids"]:
            return path.parent
    raise NoProfile(
        f"run {run}: no {FILE} under {output_dir} is of that run; name its output folder, or, if "
        "it ran on a SuperLink, --federation"
    )


def from_superlink(run_id: int, app: Path, federation: str | None, live: bool) -> Iterator[Profile]:
    """Yield the profile that a run has logged so far; if live, after each round until its end.

    Args:
        app: the app's folder; its pyproject.toml has the SuperLink's address (the newest Flower
            keeps addresses in a file of its own).
        federation: its name there; the default one if None.

    Raises:
        NoProfile: no answer, no such run, or no profile in its log.
    """
    where, profile = RELEASE.named(app, federation), None
    state = status(run_id, where)
    for line in log_lines(run_id, where, live):
        try:
            entry = json.loads(line.partition(MARK)[2])
        except ValueError:  # any other line
            continue
        if profile is None:
            profile = {"run_ids": [str(run_id)], "status": "running", "rounds": []}
        if "round" in entry:
            profile["rounds"].append(entry)
            if live:
                yield profile
    if profile is None:
        raise NoProfile(
            f"run {run_id} has no profile in its log; start it with --run-config "
            f"profile.enabled=true (it is {state} now)"
        )
    yield profile | {"status": status(run_id, where) if live else state}


def status(run_id: int, where: list[str]) -> str:
    """Return how a run on a SuperLink has ended, or "running".

    Raises:
        NoProfile: Flower does not know; the text has its answer.
    """
    command = [FLWR, "ls", *where, "--run-id", str(run_id), "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        state = answer["runs"][0]["status"]
    except subprocess.TimeoutExpired:
        raise NoProfile(f"run {run_id}: no SuperLink answers in {ANSWER_SECONDS} s") from None
    except ValueError:
        said = done.stdout + done.stderr
    except (KeyError, IndexError):
        said = answer.get("error-message", done.stdout)
    else:
        return state.partition(":")[2] if state.startswith("finished") else "running"
    said = " ".join(line.strip() for line in said.splitlines() if not re.match(NOISE, line.strip()))
    raise NoProfile(f"run {run_id}: Flower says: {said.strip()}")


def log_lines(run_id: int, where: list[str], live: bool) -> Iterator[str]:
    """Yield the lines of a run's log; if live, until the run ends."""
    command = [FLWR, "log", str(run_id), *where, "--stream" if live else "--show"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        # Flower waits for the first line of a log.
        limit = None if live else threading.Timer(ANSWER_SECONDS, process.kill)
        try:
            if limit:
                limit.start()
            yield from process.stdout
        finally:
            if limit:
                limit.cancel()
            process.kill()
