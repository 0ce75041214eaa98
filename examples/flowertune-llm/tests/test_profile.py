"""Costs of a run: recorded for each task and message, shown by `flwr-profile`."""

import json
import re
import shutil
import socket
import sys
import time
import tomllib
import uuid
from types import SimpleNamespace

import pytest
from flowertune_llm import profiler
from flowertune_llm.kit.federation.releases import RELEASE, connection
from flowertune_llm.kit.testing import APP, as_run_config, in_process, offline, only_run, run
from flowertune_llm.profiler import hooks, recorder, sources
from flowertune_llm.profiler.report import main
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

ROUNDS, NODES, CLIENTS = 2, 20, 2


@pytest.fixture
def report(monkeypatch, capsys):
    """Call the command in this process; return its exit status, and what it prints."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flwr-profile", *map(str, words)])
        try:
            status = main()
        except SystemExit as ended:  # argparse
            status = ended.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def profiled(small_model, tmp_path_factory) -> SimpleNamespace:
    """A run of the small model: its output folder, log, run id and wall time."""
    where = tmp_path_factory.mktemp("profiled")
    settings = {"profile.enabled": True, "model.name": str(small_model), "test-examples": 16}
    settings |= {"num-server-rounds": ROUNDS, "train.training-arguments.max-steps": 3}
    began = time.monotonic()
    command = [sys.executable, "-m", "flowertune_llm.kit.in_process", "--num-supernodes", NODES]
    done = run([*command, "--run-config", as_run_config(offline(**settings))], where)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout
    [run_id] = set(re.findall(r'PROFILE {"run_id": "(\d+)"', done.stdout))
    return SimpleNamespace(folder=only_run(where), log=done.stdout, run_id=run_id, seconds=seconds)


def test_tables_by_folder_and_by_run_id(profiled, report, monkeypatch):
    status, printed, _ = report(profiled.folder)
    assert status == 0
    assert f"Run {profiled.run_id}: completed, 2 rounds" in printed
    for name in ("train", "query", "aggregate", "evaluate", "checkpoint", "bytes down"):
        assert name in printed
    monkeypatch.chdir(profiled.folder.parents[2])
    assert report(profiled.run_id) == (0, printed, "")
    assert report(profiled.run_id, "--by", "node")[1].count("train") >= CLIENTS
    assert tomllib.loads((APP / "pyproject.toml").read_text())["project"]["scripts"] == {
        "flwr-profile": "flowertune_llm.profiler.report:main"
    }


def test_figures_are_those_of_the_run(profiled, report):
    shown = json.loads(report(profiled.folder, "--format", "json")[1])
    counts = {(row["task"], row["scope"]): row["count"] for row in shown["summary"]}
    assert counts == {
        ("evaluate", "server"): 2,
        ("query", "client"): NODES,
        ("train", "client"): ROUNDS * CLIENTS,
        ("aggregate", "server"): ROUNDS,
        ("checkpoint", "server"): ROUNDS + 1,
        ("adapter", "server"): 1,
    }
    for row in shown["summary"]:
        assert 0 < row["seconds_mean"] <= row["seconds_max"] < profiled.seconds
        assert row["memory_bytes_max"] > 50 * 2**20
        assert row["read_bytes"] >= 0
        assert row["written_bytes"] >= 0
        assert row["io"][0] in recorder.COUNTERS
    took = [entry["seconds"] for entry in shown["rounds"]]
    assert len(took) == ROUNDS + 1
    assert sum(took) < profiled.seconds

    results = json.loads((profiled.folder / "results.json").read_text())
    for row in shown["network"]:
        assert row["replies"] == row["messages"] == row["timed"] == row["split"]
        assert row["failed"] == 0
        ways = [row[f"{way}_seconds_mean"] for way in ("down", "up", "both")]
        assert min(ways) >= 0
        assert ways[0] + ways[1] == pytest.approx(ways[2], abs=1e-5)
        assert row["both_seconds_max"] < took[row["round"]]
        if row["task"] == "train":
            traffic = results[row["round"]]["traffic"]
            for way in ("down_bytes", "up_bytes"):
                assert row[way] == pytest.approx(CLIENTS * traffic[way], rel=0.05)
    logged = re.findall(r"PROFILE ({\"round\".*})", profiled.log)
    assert [json.loads(line) for line in logged] == shown["rounds"]


def test_page_needs_nothing_else(profiled, report, tmp_path):
    path = tmp_path / "page.html"
    assert report(profiled.folder, "--html", path)[0] == 0
    page = path.read_text()
    assert page.count("<svg") == 2
    assert "round 2" in page
    assert f"Run {profiled.run_id}" in page
    assert not re.search(r"<script|<link|http|url\(|src=", page)
    status, _, error = report(profiled.folder, "--html", tmp_path / "no" / "page.html")
    assert (status, error.count("\n")) == (1, 1)


def test_nothing_to_show_is_said_in_one_line(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    (tmp_path / "unprofiled").mkdir()
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(APP / "pyproject.toml", app)
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for name, one in (("closed", closed), ("silent", silent)):
            address = f"127.0.0.1:{one.getsockname()[1]}"
            RELEASE.declare(app, tmp_path / "home", name, connection(address, None))
        for words, message in [
            (["outputs/2026-01-31/12-00-00"], "is no folder; name a run id, or outputs/"),
            (["7"], "run 7: no profile.json under outputs is of that run"),
            (["unprofiled"], "unprofiled holds no profile.json: that run was not profiled"),
            (["7", "--app", app, "--federation", "none"], "Flower says: .*`?'?none"),
            (["7", "--app", app, "--federation", "closed"], "Flower says: .* is unavailable"),
            (["7", "--app", app, "--federation", "silent"], "run 7: no SuperLink answers in 3 s"),
        ]:
            if words[-1] == "silent":
                monkeypatch.setattr(sources, "ANSWER_SECONDS", 3)
            status, printed, error = report(*words)
            assert (status, printed) == (1, "")
            assert re.search(message, error)
            assert error.count("\n") == 1
    assert report("unprofiled", "--federation", "closed")[0] == 2


def test_aggregation_in_slices_is_measured(little, tmp_path):
    little |= {"model.lora.peft-lora-r": 2000, "aggregation.slice-megabytes": 1}
    little |= {"num-server-rounds": 1, "train.evaluate-every-round": 0}
    in_process(tmp_path, NODES, **little, profile__enabled=True)
    [_, entry] = sources.read(only_run(tmp_path) / "profile.json")["rounds"]
    tasks = {row["task"]: row["count"] for row in entry["tasks"]}
    assert tasks["aggregate"] == 1
    assert tasks["query.slice"] >= 4


class Loopback:
    """A Grid whose client answers at once; `answer` makes the reply."""

    run = SimpleNamespace(run_id=7)

    def __init__(self, answer) -> None:
        self.answer = answer
        self.replies: dict[str, Message] = {}

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self.replies[message.metadata.message_id] = self.answer(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        return [self.replies.pop(i) for i in list(message_ids) if i in self.replies]


def profiled_reply(message: Message, **changes) -> Message:
    context = Context(7, 3, {"partition-id": 1}, RecordDict(), {"profile.enabled": True})
    content = RecordDict({"arrays": ArrayRecord({"a": Array("uint8", (8,), "raw", bytes(8))})})
    reply = profiler.mod(message, context, lambda m, c: Message(content, reply_to=m))
    reply.content["profile"].update(changes)
    return reply


def messages(count: int) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"name": ""})})
    return [Message(content, 3, "query.slice") for _ in range(count)]


def test_thousands_of_messages_add_up_to_one_row(tmp_path):
    with profiler.profiled(True, tmp_path, -1) as end_round:
        grid = profiler.watched(Loopback(profiled_reply))
        for _ in range(20):
            for reply in grid.pull_messages(grid.push_messages(messages(100))):
                assert list(reply.content) == ["arrays"]
        kept = hooks.active
        assert (len(kept.sent), len(kept.tasks), len(kept.network)) == (0, 1, 1)
        end_round(1)
    [entry] = sources.read(tmp_path / "profile.json")["rounds"]
    [[row], [network]] = entry["tasks"], entry["network"]
    assert (row["task"], row["scope"], row["node"], row["count"]) == (
        *("query.slice", "client", 1, 2000),
    )
    assert (network["messages"], network["replies"], network["up_bytes"]) == (2000, 2000, 18_000)


def test_errors_nonsense_and_clocks_apart_break_nothing(tmp_path):
    answers = iter(
        [
            lambda m: Message(Error(1, "broken"), reply_to=m),
            lambda m: profiled_reply(m, seconds=float("nan")),
            lambda m: profiled_reply(m, io="<b>"),
            lambda m: profiled_reply(m, began=time.time() + 3600),
            profiled_reply,
        ]
    )
    with profiler.profiled(True, tmp_path, -1) as end_round:
        grid = profiler.watched(Loopback(lambda message: next(answers)(message)))
        replies = grid.pull_messages(grid.push_messages(messages(5)))
        assert not any("profile" in reply.content for reply in replies if reply.has_content())
        grid.grid.answer = profiled_reply
        grid.push_messages(messages(1))  # nobody asks for the answer
        end_round(1)
    [entry] = sources.read(tmp_path / "profile.json")["rounds"]
    [network], [row] = entry["network"], entry["tasks"]
    counts = {name: network[name] for name in ("messages", "replies", "failed", "timed", "split")}
    assert counts == {"messages": 6, "replies": 4, "failed": 1, "timed": 2, "split": 1}
    assert row["count"] == 2


def test_off_records_nothing(tmp_path):
    grid, context = Loopback(None), Context(7, 3, {}, RecordDict(), {"profile.enabled": False})
    [message] = messages(1)
    with profiler.profiled(False, tmp_path, -1) as end_round, profiler.task("aggregate"):
        assert profiler.watched(grid) is grid
        end_round(1)
    assert profiler.mod(message, context, lambda m, c: m) is message
    assert list(message.content) == ["config"]
    assert not list(tmp_path.iterdir())


def test_resumed_and_followed_to_its_end(tmp_path):
    """A failed run of two rounds is resumed after the first, and a follower sees each round."""

    def broken() -> None:
        with profiler.profiled(True, tmp_path, -1) as end_round:
            profiler.watched(Loopback(None))
            end_round(1)
            end_round(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert sources.read(tmp_path / "profile.json")["status"] == "failed"
    with profiler.profiled(True, tmp_path, 1) as end_round:
        profiler.watched(SimpleNamespace(run=SimpleNamespace(run_id=8)))
        following = sources.from_folder(tmp_path, live=True)
        seen = [next(following)]
        end_round(2)
        seen.append(next(following))
    seen += following
    assert [profile["status"] for profile in seen] == ["running", "running", "completed"]
    assert [entry["round"] for entry in seen[0]["rounds"]] == [1]
    assert [entry["round"] for entry in seen[-1]["rounds"]] == [1, 2]
    assert seen[-1]["run_ids"] == ["7", "8"]
