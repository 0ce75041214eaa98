"""Steps inline, in spawned processes and in the pool: the same results, and trouble survived."""

import operator
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from gpu_scaling import steps
from gpu_scaling.executors import Inline, Options, Pool, Spawn, StepFailed, WorkerDied

APP = Path(__file__).parents[1]
RECYCLE = 20

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs Unix sockets and fork")


def new_pool(**options) -> Pool:
    return Pool(uuid.uuid4().hex[:8], Options(**options), owner=os.getpid())


@pytest.fixture(scope="module")
def pool():
    pool = new_pool(workers=2, recycle_after=RECYCLE, step_timeout=4.0)
    yield pool
    os.kill(pool.run(os.getppid), signal.SIGKILL)


def gone(pid: int, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_every_executor_gives_the_same_result(pool, digits):
    weights = pool.run(steps.initial, digits.num_classes, 42)
    settings = steps.Training(2, 4, 0.05, 0.9, threads=1)
    job = (steps.train, weights, digits, 3, settings, 7)
    (trained, loss, count), *others = [ex.run(*job) for ex in (pool, Inline(), Spawn())]
    assert count == 144
    for arrays, *figures in others:
        assert figures == [loss, count]
        assert all(np.array_equal(array, trained[name]) for name, array in arrays.items())
    tested = [ex.run(steps.evaluate, trained, digits, None, 1) for ex in (pool, Inline())]
    assert tested[0] == tested[1]
    assert "each takes up to" in pool.note


@pytest.mark.parametrize("executor", [Inline(), Spawn(), "pool"], ids=["inline", "spawn", "pool"])
def test_error_in_a_step_is_told(executor, pool):
    executor = pool if executor == "pool" else executor
    with pytest.raises(StepFailed, match=r"^ZeroDivisionError: division by zero$"):
        executor.run(operator.truediv, 1, 0)
    assert executor.run(operator.truediv, 1, 2) == 0.5


@pytest.mark.parametrize("executor", [Spawn(), "pool"], ids=["spawn", "pool"])
def test_step_that_kills_its_workers_is_told(executor, pool):
    executor = pool if executor == "pool" else executor
    with pytest.raises(WorkerDied, match=r"was killed by SIGKILL: out of memory\?"):
        executor.run(signal.raise_signal, signal.SIGKILL)
    assert executor.run(operator.add, 1, 2) == 3


@pytest.mark.parametrize("executor", [Spawn(), "pool"], ids=["spawn", "pool"])
def test_step_of_a_killed_worker_is_tried_once_more(executor, pool, caplog):
    parent = psutil.Process(pool.run(os.getppid) if executor == "pool" else os.getpid())
    executor = pool if executor == "pool" else executor
    before = set() if executor is pool else set(parent.children())
    with ThreadPoolExecutor(1) as clients:
        step = clients.submit(executor.run, time.sleep, 2)
        time.sleep(1)
        for worker in set(parent.children()) - before:
            worker.kill()
        assert step.result(120) is None
    assert "was killed by SIGKILL: out of memory?; it is tried once more" in caplog.text


@pytest.mark.parametrize("case", ["missing", "long"])
def test_folders_that_are_missing_or_too_long_end_no_pool(case, tmp_path):
    """XDG_RUNTIME_DIR, after ssh or su, and a socket's path, which may have some 100 bytes."""
    folder = tmp_path / "a folder" / ("x" * 100)
    if case == "long":
        folder.mkdir(parents=True)
    code = (
        "import operator, os, uuid; from gpu_scaling.executors import Options, Pool;"
        "pool = Pool(uuid.uuid4().hex[:8], Options(), os.getpid());"
        "print(pool.run(operator.add, 1, 2), oct(pool.path.parent.stat().st_mode))"
    )
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=APP, env=environment, capture_output=True, text=True)
    assert done.stdout == "3 0o40700\n", done.stderr


def test_worker_that_dies_between_steps_costs_none(pool):
    """The step after may be on its way to the dead one before its end is heard."""
    for _ in range(20):
        os.kill(pool.run(os.getpid), signal.SIGKILL)
    assert pool.run(operator.add, 1, 2) == 3


@pytest.mark.parametrize("executor", [Spawn(4.0), "pool"], ids=["spawn", "pool"])
def test_step_that_takes_too_long_is_given_up(executor, pool):
    executor = pool if executor == "pool" else executor
    began = time.monotonic()
    with pytest.raises(WorkerDied, match=r"took longer than step-timeout = 4\.0 s"):
        executor.run(time.sleep, 60)
    assert time.monotonic() - began < 40


def test_workers_are_few_shared_and_replaced(pool):
    """50 clients in threads and one in another process: two workers, fresh ones in their turn."""
    with ThreadPoolExecutor(50) as clients:
        pids = list(clients.map(lambda _: pool.run(os.getpid), range(200)))
    assert len(set(pids)) >= 200 / RECYCLE
    assert max(map(pids.count, pids)) <= RECYCLE
    code = (
        "import os, sys; from gpu_scaling.executors import Options, Pool;"
        "print(Pool(sys.argv[1], Options(), os.getpid()).run(os.getppid))"
    )
    name = pool.path.name.split("-")[0]
    other = subprocess.run([sys.executable, "-c", code, name], cwd=APP, capture_output=True)
    server = pool.run(os.getppid)
    assert int(other.stdout) == server
    assert len(psutil.Process(server).children()) <= 2


def test_server_has_not_touched_the_device_nor_started_threads(pool):
    server = psutil.Process(pool.run(os.getppid))
    assert server.num_threads() <= 2
    assert not [file for file in server.open_files() if "nvidia" in file.path]


def test_pool_ends_with_its_owner_and_its_workers_with_it():
    """SIGKILL, for the owner in the middle of a step."""
    code = (
        "import os, sys, time; from gpu_scaling.executors import Options, Pool;"
        "pool = Pool(sys.argv[1], Options(), os.getpid());"
        "print(pool.run(os.getppid), pool.run(os.getpid), flush=True);"
        "pool.run(time.sleep, 600)"
    )
    command = [sys.executable, "-c", code, uuid.uuid4().hex[:8]]
    with subprocess.Popen(command, cwd=APP, stdout=subprocess.PIPE, text=True) as owner:
        server, worker = map(int, owner.stdout.readline().split())
        assert psutil.pid_exists(server)
        owner.kill()
    assert gone(server)
    assert gone(worker)


def test_pool_that_is_killed_is_started_anew_and_an_idle_one_ends():
    pool = new_pool(workers=1, pool_idle=1.0)
    first = pool.run(os.getppid)
    os.kill(first, signal.SIGKILL)
    second = pool.run(os.getppid)
    assert second != first
    assert gone(second)
    assert not pool.path.exists()
    assert not pool.log.exists()  # there was nothing to say
