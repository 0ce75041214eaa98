"""`flower-simulation`, with a line of JSON for each round: seconds, score, bytes on the wire.

The app is as it is: bytes are counted where Flower's grid takes messages and hands out replies,
rounds are read off the log. A message counts with the size of the protobuf that Flower makes of
it; the time for that, milliseconds a round, is part of what is measured.
"""

import json
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.server.grid import InMemoryGrid
from flwr.simulation.run_simulation import run_simulation_from_cli


class CountedBytes:
    """Counts what a grid's `push_messages` and `pull_messages` carry."""

    def __init__(self) -> None:
        self.total = 0
        push, pull = InMemoryGrid.push_messages, InMemoryGrid.pull_messages
        InMemoryGrid.push_messages = lambda grid, messages: push(grid, self.count(messages))
        InMemoryGrid.pull_messages = lambda grid, ids: self.count(pull(grid, ids))

    def count(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        self.total += sum(message_to_proto(message).ByteSize() for message in messages)
        return messages


class Rounds(logging.Handler):
    """Prints a line when the log says that a round has ended."""

    def __init__(self, counted: CountedBytes) -> None:
        super().__init__()
        self.counted = counted
        self.began: dict[str, Any] = {}
        self.score = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if match := re.search(r"\[ROUND (\d+)/", text):
            began = {"time": time.perf_counter(), "bytes": self.counted.total}
            self.began = began | {"round": int(match[1])}
        if match := re.search(r"evaluate_metrics_serverapp: \w+ ([\d.]+)", text):
            self.score = float(match[1])
        if "Round took" in text and self.began:
            line = {
                "round": self.began["round"],
                "seconds": time.perf_counter() - self.began["time"],
                "score": self.score,
                "bytes": self.counted.total - self.began["bytes"],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    logging.getLogger("flwr").addHandler(Rounds(CountedBytes()))
    run_simulation_from_cli()
