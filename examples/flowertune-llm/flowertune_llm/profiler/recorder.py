"""Costs of a task in this process, and sums of the costs of a run's tasks and messages.

Costs are added up at once: memory grows with rounds, tasks and nodes, not with messages.
"""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging import INFO
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common import log

from flowertune_llm.kit.files import write_whole

FILE = "profile.json"
MARK = "PROFILE "  # begin of a machine-readable line of the log
COUNTERS = ("io_counters", "getrusage", "none")  # sources of bytes read and written
MEANS = ("seconds", "memory_bytes", "memory_change_bytes", "device_bytes")  # and their maxima
SUMS = ("read_bytes", "written_bytes")
COUNTS = ("messages", "replies", "failed", "timed", "split", "down_bytes", "up_bytes")
Cost = dict[str, Any]  # of one task: MEANS, SUMS, "node", "began", and "io", one of COUNTERS
Row = dict[str, Any]  # of many tasks: <name>_mean and <name>_max, sums under their own names


@contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Yield a cost that is filled in when the block has ended without an error."""
    process = psutil.Process()
    device_peak(reset=True)
    memory, (io, *before) = process.memory_info().rss, moved(process)
    cost |= {"began": time.time(), "io": io}
    start = time.perf_counter()
    yield
    cost |= {"seconds": time.perf_counter() - start, "device_bytes": device_peak()}
    cost["memory_bytes"] = process.memory_info().rss
    cost["memory_change_bytes"] = cost["memory_bytes"] - memory
    for name, then, now in zip(SUMS, before, moved(process)[1:], strict=True):
        cost[name] = now - then


def moved(process: psutil.Process) -> tuple[str, int, int]:
    """Return the counter of this process's disk traffic, and the bytes read and written so far."""
    with suppress(AttributeError, NotImplementedError, psutil.Error):  # macOS; some containers
        counters = process.io_counters()
        return "io_counters", counters.read_bytes, counters.write_bytes
    with suppress(ImportError):  # Windows
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return "getrusage", usage.ru_inblock * 512, usage.ru_oublock * 512
    return "none", 0, 0


def device_peak(*, reset: bool = False) -> int:
    """Return PyTorch's peak bytes on any GPU since the last reset; 0 without CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # without importing torch
    if cuda is None or not cuda.is_initialized():
        return 0
    devices = range(cuda.device_count())
    for device in devices if reset else ():
        cuda.reset_peak_memory_stats(device)
    return max(map(cuda.max_memory_allocated, devices))


class Recorder:
    """The sums of a round's costs, written and logged when the round has ended."""

    def __init__(self, path: Path, after_round: int) -> None:
        self.path = path
        self.run_ids, self.rounds = earlier(path, after_round)
        self.sent: dict[str, tuple[str, int, float, float]] = {}  # by id of unanswered messages
        self.lock = Lock()
        self.begin_round()

    def begin_round(self) -> None:
        self.began = time.time()
        self.tasks: dict[tuple[str, str, int | None], Row] = {}
        self.network: dict[str, Row] = {}

    def start(self, run_id: int) -> None:
        self.run_ids.append(str(run_id))  # as text: many programs round JSON numbers of 64 bits
        log(INFO, "%s%s", MARK, json.dumps({"run_id": str(run_id), "file": str(self.path)}))
        self.write("running")

    def end_round(self, server_round: int) -> None:
        with self.lock:
            entry = {"round": server_round, "began": round(self.began, 6)}
            entry |= {"seconds": round(time.time() - self.began, 6)}
            entry |= {"tasks": tidy(self.tasks.values()), "network": tidy(self.network.values())}
            self.sent.clear()  # late answers do not count
            self.begin_round()
        self.rounds.append(json.dumps(entry, separators=(",", ":")))
        log(INFO, "%s%s", MARK, self.rounds[-1])
        self.write("running")

    def write(self, status: str) -> None:
        """Write profile.json, with a line for each round, which is cheap in long runs."""
        head = json.dumps({"run_ids": self.run_ids, "status": status})
        rounds = ",\n".join(self.rounds)
        write_whole(self.path, f'{head[:-1]}, "rounds": [\n{rounds}\n]}}\n'.encode())

    def add(self, task: str, scope: str, node: int | None, cost: Cost, began: float) -> None:
        """Add a task to its row, by name, scope and node; `began` is by the server's clock."""
        with self.lock:
            key = {"task": task, "scope": scope, "node": node}
            row = self.tasks.setdefault((task, scope, node), key | {"count": 0})
            row["count"] += 1
            for name in MEANS:
                include(row, name, cost[name], row["count"])
            for name in SUMS:
                row[name] = row.get(name, 0) + cost[name]
            row["io"] = cost["io"]
            begun, ended = began - self.began, began - self.began + cost["seconds"]
            row["began"] = min(begun, row.get("began", begun))
            row["ended"] = max(ended, row.get("ended", ended))

    def pushed(self, message: Message, size: int, wall: float, start: float) -> None:
        task, node_id = message.metadata.message_type, message.metadata.dst_node_id
        with self.lock:
            row = self.network.setdefault(task, {"task": task} | dict.fromkeys(COUNTS, 0))
            row["messages"] += 1
            row["down_bytes"] += size
            self.sent[message.metadata.message_id] = (task, node_id, wall, start)

    def pulled(self, reply: Message, cost: Cost | None, end: float) -> None:
        """Add the costs of a client's task, if the reply has them, and its messages' time."""
        with self.lock:
            sent = self.sent.pop(reply.metadata.reply_to_message_id, None)
            if sent is None:
                return
            task, node_id, wall, start = sent
            row = self.network[task]
            row["failed" if reply.has_error() else "replies"] += 1
            row["up_bytes"] += 0 if reply.has_error() else size_of(reply.content)
            if cost is None:
                return
            # The sum of both ways does not depend on the clocks: it is made of durations.
            both = max(end - start - cost["seconds"], 0.0)
            row["timed"] += 1
            include(row, "both_seconds", both, row["timed"])
            down = cost["began"] - wall
            if agree := 0 <= down <= both:  # the clocks differ by less than a way takes
                row["split"] += 1
                include(row, "down_seconds", down, row["split"])
                include(row, "up_seconds", both - down, row["split"])
        node = int(cost["node"]) if cost["node"] >= 0 else node_id
        self.add(task, "client", node, cost, wall + (down if agree else both / 2))


def include(row: Row, name: str, value: float, count: int) -> None:
    """Add a value to a mean, which is then one over `count` values, and to the maximum."""
    mean = row.get(f"{name}_mean", 0.0)
    row[f"{name}_mean"] = mean + (value - mean) / count
    row[f"{name}_max"] = max(value, row.get(f"{name}_max", value))


def tidy(rows: Iterable[Row]) -> list[Row]:
    """Return rows rounded to microseconds and whole bytes."""

    def tidied(name: str, value: Any) -> Any:
        return round(value, None if "bytes" in name else 6) if isinstance(value, float) else value

    return [{name: tidied(name, value) for name, value in row.items()} for row in rows]


def size_of(content: RecordDict) -> int:
    """Return the size of all records in bytes, without Flower's framing."""
    size = 0
    for record in content.values():
        with suppress(ValueError):  # Flower cannot count an empty text
            size += record.count_bytes()
    return size


def cost_of(record: Any) -> Cost | None:
    """Return the cost of a task in a client's reply; None if it is not usable."""
    if not isinstance(record, ConfigRecord) or record.get("io") not in COUNTERS:
        return None
    cost = {name: record.get(name) for name in ("node", "began", *MEANS, *SUMS)}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in cost.values()):
        return None
    return cost | {"io": record["io"]} if cost["seconds"] >= 0 else None


def earlier(path: Path, after_round: int) -> tuple[list[str], list[str]]:
    """Return run ids, and rounds as lines of JSON, of the resumed run; empty without one."""
    if not path.is_file():
        return [], []
    found = json.loads(path.read_text())
    rounds = [entry for entry in found["rounds"] if entry["round"] <= after_round]
    return found["run_ids"], [json.dumps(entry, separators=(",", ":")) for entry in rounds]
