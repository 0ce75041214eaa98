# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What sits between server and clients in a run: it notes what passes, and makes faults."""

import os
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir
from torch import nn

from ..in_process import InProcessGrid, load, run_app
from .inputs import calls_noted, inputs_noted

FAULTS = {
    "raises": "an error",
    "nan": "NaN",
    "shape": "another shape",
    "metrics": "other metrics",
    "figures": "metrics that are NaN",
    "enormous": "an enormous update",
    "silent": "no answer",
}
KEPT_BYTES = 2**26  # of arrays beside the model that a client sends
Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    """A run to be made.

    Args:
        name: for the folder that it is made in.
        settings: over the app's own.
        nodes: number of clients.
        faults: what is wrong with the training replies of some, by partition; see FAULTS.
        since: the first round with faults.
        echo: all clients send what the one of this partition would; -1: each its own.
        reverse: replies arrive in reverse order.
        stir: seeds the global generators before each message; 0 leaves them alone.
        until: the run ends with the first "contact" of a client, or with the first "reply".
        snapshots: the run's files are kept as they are at each moment.
        inputs: note what models see.
        calls: note which functions of the app return arrays.
        app: its folder, where it is a changed copy.
        start: a folder that the run begins with.
        cache: where the app's caches go; by default one folder for all runs of an exam.
        central: "module:function" that trains without Flower, in place of a run.
        seconds: that it may take.
    """

    name: str
    settings: dict[str, Any]
    nodes: int
    faults: dict[int, str] = field(default_factory=dict)
    since: int = 1
    echo: int = -1
    reverse: bool = False
    stir: int = 0
    until: str = ""
    snapshots: bool = False
    inputs: bool = False
    calls: bool = False
    app: Path | None = None
    start: Path | None = None
    cache: Path | None = None
    central: str = ""
    seconds: float = 600.0


@dataclass
class Record:
    """What was seen of a run; plain values only."""

    error: str | None = ""  # what the ServerApp raised; None: it was stopped
    models: list[tuple[str, int, Arrays]] = field(default_factory=list)  # kind, round, arrays
    replies: list[dict[str, Any]] = field(default_factory=list)
    points: int = 0  # moments at which snapshots were looked for
    snapshots: list[Path] = field(default_factory=list)
    seen: dict[tuple[int, str, int], set[bytes]] = field(default_factory=dict)
    shapes: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of inputs, see inputs.py
    entries: dict[str, tuple[str, str, tuple]] = field(default_factory=dict)  # of the model
    calls: set[tuple[str, str]] = field(default_factory=set)
    nodes: dict[int, int] = field(default_factory=dict)  # node ids by partition
    modules: list[str] = field(default_factory=list)  # that were imported by its end


class Stopped(BaseException):
    """The end of a run that has shown what was asked."""


class Witness(InProcessGrid):
    """A Grid that notes what passes, and makes the faults of a case."""

    def __init__(
        self,
        client_app: ClientApp,
        nodes: dict[int, Context],
        run_id: int,
        threads: int,
        case: Case,
        record: Record,
    ) -> None:
        super().__init__(self.answer, nodes, run_id, threads)
        self.app, self.case, self.record = client_app, case, record
        self.trainings, self.asked = 0, set[int]()  # rounds so far, and nodes asked in this phase
        self.kind = ""  # of this phase
        self.now = -1, 0, "evaluate"  # whose turn it is (-1: the server's), the round, what for
        self.echoed: dict[tuple[str, int], RecordDict] = {}
        self.looking, self.state = False, dict[str, tuple[int, int]]()
        self.in_place: set[Path] = set()  # files that were opened to be written
        record.nodes |= {int(c.node_config["partition-id"]): n for n, c in nodes.items()}
        self.partitions = {node: partition for partition, node in record.nodes.items()}

    def get_node_ids(self) -> list[int]:
        if self.case.until == "contact":
            raise Stopped
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        if self.case.until == "contact":
            raise Stopped
        messages = list(messages)
        self.look()
        for message in messages:
            self.note_sent(message)
        ids = super().push_messages(messages)
        self.look()
        return ids

    def note_sent(self, message: Message) -> None:
        """Note the model that a phase begins with."""
        kind, node = kind_of(message), message.metadata.dst_node_id
        if kind != self.kind or node in self.asked:
            self.kind, self.asked = kind, set()
            self.trainings += kind == "train"
            arrays = arrays_of(message.content)
            if arrays and kind != "query":
                self.record.models.append((kind, self.round_of(message), arrays))
        self.asked.add(node)

    def round_of(self, message: Message) -> int:
        for config in message.content.config_records.values():
            if "server-round" in config:
                return int(config["server-round"])
        return self.trainings

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = set(message_ids)
        waiting = [i for i in self.pending if i in asked]
        ready = [i for i in waiting if self.fault_of(self.pending[i]) != "silent"]
        if waiting and not ready:
            Clock.put_forward()
        self.look()
        replies = super().pull_messages(ready[-1:] if self.case.reverse else ready[:1])
        self.look()
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        ids = self.push_messages(messages)
        ids = ids[::-1] if self.case.reverse else ids
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def fault_of(self, message: Message) -> str:
        trains = kind_of(message) == "train" and self.round_of(message) >= self.case.since
        return self.case.faults.get(self.partition_of(message), "") if trains else ""

    def partition_of(self, message: Message) -> int:
        return self.partitions[message.metadata.dst_node_id]

    def reply(self, message: Message) -> Message:
        fault, partition = self.fault_of(message), self.partition_of(message)
        kind, server_round = kind_of(message), self.round_of(message)
        self.now = partition, server_round, kind
        if self.case.stir:
            stir(self.case.stir + len(self.record.replies))
        sent = arrays_of(message.content)
        reply = super().reply(message)
        self.now = -1, server_round, "evaluate"
        if reply.has_content() and fault not in ("", "raises"):
            reply.content = deepcopy(reply.content)  # others may send the same
            spoil(reply, fault, sent)
        self.record.replies.append(described(reply, kind, server_round, partition, sent))
        if self.case.until == "reply" and kind == "train":
            raise Stopped
        return reply

    def answer(self, message: Message, context: Context) -> Message:
        """Answer a message as the client would, or as the one whose answers all give."""
        if self.fault_of(message) == "raises":
            error = OSError(f"the disk of client {self.partition_of(message)} is full (an exam)")
            with models_raise(error) as raised:
                reply = self.app(message, context)
            if reply.has_error() or raised:  # the app's own answer to it
                return reply
            raise error
        kind, server_round = kind_of(message), self.round_of(message)
        if self.case.echo < 0 or kind == "query":
            return self.app(message, context)
        if (kind, server_round) not in self.echoed:
            whose = self.nodes[self.record.nodes[self.case.echo]]
            reply = self.app(message, whose)
            if reply.has_error():
                return reply
            self.echoed[kind, server_round] = reply.content
        return Message(self.echoed[kind, server_round].copy(), reply_to=message)

    def look(self) -> None:
        """Keep the run's files as they are now, unless they are as they were.

        Those that were written in place since are kept half written, too.
        """
        if not self.case.snapshots or self.looking:
            return
        self.looking = True
        try:
            self.record.points += 1
            files = [Path(name) for name in visible(Path())]
            state = {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}
            if state and state != self.state:
                for path in [p for p in files if p in self.in_place]:
                    os.truncate(self.keep() / path, path.stat().st_size // 2)
                self.keep()
                self.state, self.in_place = state, set()
        finally:
            self.looking = False

    def keep(self) -> Path:
        """Copy the run's files, and return where to."""
        kept = Path(f"../snapshots/{len(self.record.snapshots)}").resolve()
        shutil.copytree(".", kept)
        self.record.snapshots.append(kept)
        return kept

    def watch_files(self) -> None:
        """Look before each change of a file in this folder, too."""
        here = Path.cwd()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate")
            writes = event == "open" and isinstance(arguments[2], int)
            writes = writes and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if self.looking or not (changes or writes):
                return
            if isinstance(arguments[0], str | Path) and here in Path(here, arguments[0]).parents:
                self.look()
                if writes:
                    self.in_place.add(Path(here, arguments[0]).relative_to(here))

        sys.addaudithook(hook)


@contextmanager
def models_raise(error: Exception) -> Iterator[list[Exception]]:
    """Have models raise an error when they are called; tell whether one was."""
    original, raised = nn.Module.__call__, list[Exception]()

    def call(*args: Any, **kwargs: Any) -> Any:
        raised.append(error)
        raise error

    nn.Module.__call__ = call
    try:
        yield raised
    finally:
        nn.Module.__call__ = original


class Clock:
    """Time, which an exam puts forward where others wait for a client that never answers."""

    ahead = 0.0

    @classmethod
    def put_forward(cls) -> None:
        if not cls.ahead:
            for name in ("monotonic", "time"):
                setattr(time, name, partial(cls.shifted, getattr(time, name)))
        cls.ahead += 1e6

    @classmethod
    def shifted(cls, real: Any) -> float:
        return real() + cls.ahead


def play(app: Path, case: Case, settings: dict[str, Any], record: Record) -> None:
    """Make the run of a case; what the ServerApp raises goes into the record."""
    held: list[Witness] = []

    def make_grid(client_app: ClientApp, *rest: Any) -> Witness:
        held.append(Witness(client_app, *rest, case=case, record=record))
        if case.snapshots:
            held[0].watch_files()
        return held[0]

    def now() -> tuple[int, int, str]:
        return held[0].now if held else (-1, 0, "evaluate")

    if case.stir:
        stir(case.stir)
    torch.set_num_threads(1)
    with inputs_noted(case.inputs, record, now), calls_noted(case.calls, record, app):
        try:
            if case.central:
                record.models = [("centralised", 1, centralised(app, case, settings))]
                return
            run_app(app, case.nodes, settings | case.settings, make_grid=make_grid)
            for grid in held:
                grid.look()
        except Stopped:
            record.error = None
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"


def centralised(app: Path, case: Case, settings: dict[str, Any]) -> Arrays:
    """Train without Flower, and return the model's arrays."""
    config = get_fused_config_from_dir(app, settings | case.settings)
    model = load(app, case.central)(config)
    state = model.state_dict() if hasattr(model, "state_dict") else model
    arrays = {name: np.array(torch.as_tensor(value).cpu()) for name, value in state.items()}
    return {name: np.atleast_1d(array) for name, array in arrays.items()}  # as they are sent


def visible(folder: Path) -> list[str]:
    """Return the files below a folder, without hidden ones: those of a write that has not ended."""
    names = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return [str(p) for p in names if not any(part.startswith(".") for part in p.parts)]


def kind_of(message: Message) -> str:
    return message.metadata.message_type.split(".")[0]


def arrays_of(content: RecordDict) -> Arrays:
    """Return all arrays of a message; those of its one or first record by their own names."""
    arrays: Arrays = {}
    for record in content.array_records.values():
        for name, array in record.items():
            arrays.setdefault(name, np.array(array.numpy()))
    return arrays


def spoil(reply: Message, fault: str, sent: Arrays) -> None:
    """Make a good reply a bad one."""
    if fault in ("metrics", "figures"):
        for record in reply.content.metric_records.values():
            nan = {key: np.nan for key, value in record.items() if isinstance(value, float)}
            nan = nan or dict.fromkeys(record, np.nan)  # a client that counts examples only
            record.update(nan if fault == "figures" else {"exam": 1.0})
        return
    records = [r for r in reply.content.array_records.values() if r.keys() & sent.keys()]
    changed = False
    for record in records or list(reply.content.array_records.values()):
        for name, array in record.items():
            value = array.numpy()
            cut = fault == "shape" and (changed or value.shape[:1] < (2,))
            if value.dtype.kind != "f" or cut:
                continue
            with np.errstate(all="ignore"):
                bad = {"nan": value * np.nan, "enormous": value + value.dtype.type(1e9)}
            record[name] = Array(value[1:] if fault == "shape" else bad[fault])
            changed = True


def described(
    reply: Message, kind: str, server_round: int, partition: int, sent: Arrays
) -> dict[str, Any]:
    """Return what a reply holds, for a record."""
    about: dict[str, Any] = {"kind": kind, "round": server_round, "partition": partition}
    about |= {
        "type": reply.metadata.message_type,
        "error": "",
        "items": [],
        "metrics": {},
        "arrays": {},
        "beside": {},
    }
    if reply.has_error():
        return about | {"error": str(reply.error.reason)}
    for name, record in reply.content.items():
        for key, value in record.items():
            if isinstance(record, ArrayRecord):
                array, size = np.array(value.numpy()), len(value.data)
                item = [name, "array", key, str(value.dtype), list(value.shape), size]
                alike = np.atleast_1d(array)  # as single numbers are sent
                if key in sent and alike.shape == np.atleast_1d(sent[key]).shape:
                    about["arrays"][key] = alike.reshape(sent[key].shape)
                elif sum(a.nbytes for a in about["beside"].values()) < KEPT_BYTES:
                    about["beside"][f"{name}/{key}"] = array
            else:
                size = len(value) if isinstance(value, str | bytes | list) else 1
                sort = "metric" if isinstance(record, MetricRecord) else "config"
                item = [name, sort, key, type(value).__name__, [size], size * 8]
                if sort == "metric":
                    about["metrics"][key] = value
                elif isinstance(value, bytes):
                    item[-1] = size
                    about["beside"][f"{name}/{key}"] = np.frombuffer(value, np.uint8)
                if isinstance(value, list) and value and isinstance(value[0], int | float):
                    about["beside"][f"{name}/{key}"] = np.asarray(value)
            about["items"].append(item)
    return about


def stir(seed: int) -> None:
    """Put the global generators into another state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
