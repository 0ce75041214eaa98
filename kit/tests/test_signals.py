# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A signal ends a process and all its descendants, whatever other code handles signals."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ..processes import processes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# Sleeping processes: a child, a grandchild, and one whose parent ends as soon as it is killed.
BUSY = """
import importlib, signal, subprocess, sys, threading, time
sys.path.insert(0, sys.argv[1])
signals = importlib.import_module(sys.argv[2])
threading.Thread(target=signals.end_on_signals).start()  # not in the main thread
time.sleep(0.5)
signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
command = "sleep 1000 & (sleep 1000 & sleep 1000) & sleep 1000"
subprocess.Popen(["sh", "-c", command], start_new_session=True)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def in_session(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for pid, _, state in processes():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == session and state not in "ZX":
                found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_all(number):
    depth = __name__.count(".")
    name = f"{__package__.rsplit('.', 1)[0]}.signals"
    command = [sys.executable, "-c", BUSY, str(Path(__file__).parents[depth]), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout.readline() == b"ready\n"
        [session] = [pid for pid, parent, _ in processes() if parent == process.pid]
        while len(in_session(session)) < 4:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(5) == 128 + number
    finally:
        process.kill()
    assert b"Interrupted; no round is saved yet" in process.stdout.read()
    deadline = time.monotonic() + 5
    while in_session(session):
        assert time.monotonic() < deadline
        time.sleep(0.01)
