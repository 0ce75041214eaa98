"""Seconds of a round between real processes: Flower's waits, process starts, the work itself.

A SuperLink and two SuperNodes over TLS run advanced-pytorch offline, with warm ClientApps and
without; the same round in one process stands beside it. The SuperNodes' logs are read as they grow.
A phase of a SuperNode, training or testing, has four stages.

- look: from its last reply to the next message; Flower looks every 3 s.
- launch: to the start of the ClientApp's process; Flower looks every second, the newest release
  every half here, and without --warm the process imports Flower.
- app: to the reply's sending: imports, data, training or testing; Flower looks every 0.5 s.
- send: until the SuperLink has the reply.

Run it with the Python of either release's environment.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import ROOT, SEED, history, measurement
from watch import Watch

from kit.federation import Federation
from kit.federation.__main__ import settings
from kit.settings import as_run_config

APP = ROOT / "examples" / "advanced-pytorch"
NODES, ROUNDS = 2, 5
# Lines of a SuperNode's log for each message, in order; on the newest release the third may come
# second.
MARKS = {
    "received": r"Receiving: (train|evaluate) message",
    "launched": r"Start `flwr-clientapp` process",
    "answered": r"Sending: (train|evaluate) message",
    "sent": r"Sent successfully",
}


class Log(Watch):
    """The lines of a log, each with the time at which it appeared."""

    def __init__(self, path: Path) -> None:
        super().__init__(every=0.02)
        self.path, self.read, self.lines = path, 0, []

    def look(self) -> None:
        text = self.path.read_text(errors="replace")[self.read :]
        whole = text.rpartition("\n")[0]
        self.read += len(whole) + bool(whole)
        now = time.monotonic()
        self.lines += [(now, line) for line in whole.splitlines()]

    def phases(self) -> list[dict[str, Any]]:
        """Return the stages of each training and test, in seconds."""
        found, at, kind = [], {}, ""
        for when, line in self.lines:
            for mark, pattern in MARKS.items():
                if match := re.search(pattern, line):
                    kind = match[1] if match.lastindex else kind
                    if mark == "received":
                        at = {"free": at.get("sent", when)}
                    at[mark] = when
            if kind and at.keys() >= MARKS.keys():
                stages = {
                    "look": at["received"] - at["free"],
                    "launch": at["launched"] - at["received"],
                    "app": at["answered"] - at["launched"],
                    "send": at["sent"] - at["answered"],
                }
                found.append({"kind": kind} | stages)
                at, kind = {"sent": at["sent"]}, ""
        return found


def between_processes(warm: bool) -> dict[str, Any]:
    """Return the seconds of each round, and the median of each stage by phase."""
    changes = settings(APP, True, f"num-server-rounds={ROUNDS}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Federation(APP, Path(folder), warm=warm, verbose=False) as federation,
    ):
        federation.start_supernodes(NODES)
        logs = [Log(federation.parts[f"supernode-{i}"].log) for i in range(NODES)]
        for log in logs:
            log.start()
        status = federation.follow(run_id := federation.run(as_run_config(changes)))
        text = federation.log_of_run(run_id).read_text()
        for log in logs:
            log.ended.set()
            log.join()
    if status != "finished:completed":
        raise RuntimeError(f"the run is {status}")
    seconds = [float(found) for found in re.findall(r"Round took ([\d.]+) s", text)]
    phases = [phase for log in logs for phase in log.phases()[2:]]  # without the first round's
    stages = {
        kind: {
            stage: statistics.median(phase[stage] for phase in phases if phase["kind"] == kind)
            for stage in ("look", "launch", "app", "send")
        }
        for kind in ("train", "evaluate")
    }
    row = {"warm": warm, "round_seconds": seconds, "median_seconds": later(seconds)}
    print(row | {"stages": stages}, flush=True)
    return row | {"stages": stages}


def in_one_process() -> dict[str, Any]:
    """Return the seconds of each round without Flower's processes."""
    import subprocess

    command = [sys.executable, "-m", "pytorch_example.kit.in_process", "--num-supernodes", NODES]
    command += ["--run-config", as_run_config(settings(APP, True, f"num-server-rounds={ROUNDS}"))]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            list(map(str, command)), cwd=folder, capture_output=True, text=True, check=True
        )
        assert len(history(Path(folder))) == ROUNDS + 1
    seconds = [
        float(found) for found in re.findall(r"Round took ([\d.]+) s", done.stdout + done.stderr)
    ]
    return {"round_seconds": seconds, "median_seconds": later(seconds)}


def later(seconds: list[float]) -> float:
    """Return the median without the first round, which includes the start-up."""
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trial", action="store_true", help="write nothing")
    trial = parser.parse_args().trial
    release = "pinned" if version("flwr").startswith("1.25.") else "newest"
    with measurement(f"federation-rounds-{release}", seeds=(SEED,), trial=trial) as result:
        result["rows"] = [between_processes(warm) for warm in (True, False)]
        result["one_process"] = in_one_process()


if __name__ == "__main__":
    main()
