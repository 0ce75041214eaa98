"""Cost of profiling: its own time for a message and for a round, beside a real round's.

Messages as large as the offline run's go through the client's mod and the server's Grid, around a
client that does nothing and a Grid that sends nothing, with profiling and without; so do whole
rounds, with their tasks, file and log line. The difference is the cost of profiling. The rounds of
a profiled simulation stand beside it.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ROOT, SEED, declared_config, measurement, simulate
from flowertune_llm import models, profiler, transport
from flowertune_llm.config import Config
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.common.logger import console_handler

APP = ROOT / "examples" / "flowertune-llm"
MESSAGES, REPEATS, NODES = 1000, 5, 20
CLIENTS, TASKS = 2, ("aggregate", "evaluate", "checkpoint")  # of a round
ROUNDS, SIMULATED = 100, 5


class Nowhere:
    """A Grid that sends nothing and answers each message itself."""

    run = SimpleNamespace(run_id=0)

    def __init__(self, answer: Callable[[Message], Message]) -> None:
        self.answer = answer
        self.replies: dict[str, Message] = {}

    def push_messages(self, messages: list[Message]) -> list[str]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            self.replies[str(number)] = self.answer(message)
        return list(self.replies)

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        return [self.replies.pop(message_id) for message_id in message_ids]


def settings() -> dict[str, Any]:
    """Return the run config of the offline run."""
    return declared_config(APP, offline=True)


def seconds(enabled: bool) -> dict[str, float]:
    """Return the seconds of a message and its reply, and of a round, without any work."""
    run_config = settings() | {"profile.enabled": enabled}
    config = Config.from_run_config(run_config)
    arrays = transport.encode(models.initial_adapter(config), config.transport_dtype)
    node = {"partition-id": 0, "num-partitions": NODES}
    context = Context(0, 0, node, RecordDict(), run_config)

    def client(message: Message, context: Context) -> Message:
        content = {"arrays": arrays, "metrics": MetricRecord({"train_loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    def messages(count: int) -> list[Message]:
        return [Message(RecordDict({"arrays": arrays}), i, "train") for i in range(count)]

    with (
        tempfile.TemporaryDirectory() as folder,
        profiler.profiled(enabled, Path(folder), -1) as end_round,
    ):
        grid = profiler.watched(Nowhere(lambda m: profiler.mod(m, context, client)))
        pushed = messages(MESSAGES)
        began = time.perf_counter()
        grid.pull_messages(grid.push_messages(pushed))
        message = (time.perf_counter() - began) / MESSAGES
        end_round(0)
        began = time.perf_counter()
        for server_round in range(1, ROUNDS + 1):
            grid.pull_messages(grid.push_messages(messages(CLIENTS)))
            for name in TASKS:
                with profiler.task(name):
                    pass
            end_round(server_round)
        return {"message": message, "round": (time.perf_counter() - began) / ROUNDS}


def added() -> dict[str, float]:
    """Return the seconds that profiling adds to a message and to a round: medians."""
    taken: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryFile("w") as file:
        console_handler.stream = file  # lines are written as in a run, and not shown
        for _ in range(REPEATS):
            for enabled, times in taken.items():
                times.append(seconds(enabled))
    medians = {
        e: {n: statistics.median(t[n] for t in times) for n in times[0]}
        for e, times in taken.items()
    }
    return {name: medians[True][name] - medians[False][name] for name in medians[True]}


def simulated() -> list[float]:
    """Return the seconds of the offline run's rounds, profiled, without the first."""
    changes = {"profile.enabled": True, "num-server-rounds": SIMULATED}
    with tempfile.TemporaryDirectory() as folder:
        log = "".join(simulate(APP, NODES, settings() | changes, Path(folder)))
    return [float(number) for number in re.findall(r"Round took ([\d.]+) s", log)][1:]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with measurement("flowertune-llm-profile", seeds=(SEED,)) as result:
        own, rounds = added(), simulated()
        result |= {"messages": MESSAGES, "clients": CLIENTS, "message_seconds": own["message"]}
        result |= {"round_seconds": own["round"], "simulated_seconds": rounds}
        result["share"] = own["round"] / min(rounds)
        print(result)


if __name__ == "__main__":
    main()
