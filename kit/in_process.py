# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The app in one process: no Ray, no workers, breakpoints that work.

    python -m <package>.kit.in_process --num-supernodes 2 --run-config offline.toml

Settings, outputs and results are those of `flwr run`. An exception in a client becomes an error
reply, as elsewhere; a client that never returns cannot be given up here.
"""

import argparse
import secrets
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib import import_module
from logging import ERROR, INFO
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, cast

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp

from . import app_folder
from .signals import end_on_signals


class InProcessGrid:
    """A Grid whose nodes are in this process, and work on a message when its reply is pulled.

    Args:
        client_app: the ClientApp of every node.
        nodes: the context of each node, by its id.
        run_id: of the run.
        threads: PyTorch's, while a client works.
    """

    def __init__(
        self, client_app: ClientApp, nodes: dict[int, Context], run_id: int, threads: int
    ) -> None:
        self.client_app, self.nodes, self.threads = client_app, nodes, threads
        self.run = SimpleNamespace(run_id=run_id)  # of Flower's Run, all that is used
        self.pending: dict[str, Message] = {}  # by message id, in the order of sending
        self.lock = Lock()
        sign_messages(run_id)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep a copy of each message, which a client may change."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = self.run.run_id
            message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
            ids.append(message.metadata.message_id)
            self.pending[ids[-1]] = deepcopy(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let a client work on the oldest of these messages, and return its reply."""
        with self.lock:
            asked = set(message_ids)
            found = next((message_id for message_id in self.pending if message_id in asked), None)
            return [self.reply(self.pending.pop(found))] if found else []

    def reply(self, message: Message) -> Message:
        context = self.nodes[message.metadata.dst_node_id]
        try:
            with pytorch_threads(self.threads):
                return self.client_app(message, context)
        except Exception as error:
            log(ERROR, traceback.format_exc())
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return all replies, however long they take."""
        ids = self.push_messages(messages)
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def sign_messages(run_id: int) -> None:
    """Set the identity that newer Flower needs to make a message."""
    with suppress(ImportError):
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id = run_id, SUPERLINK_NODE_ID
        TaskIdentity.task_id = 1  # as in a simulation


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_app(
    app: Path,
    num_supernodes: int,
    overrides: dict[str, Any] | None = None,
    client_app: ClientApp | None = None,
    make_grid: Callable[..., InProcessGrid] = InProcessGrid,
) -> None:
    """Run an app to its end; an error of its ServerApp is raised.

    Args:
        app: its folder.
        num_supernodes: number of clients.
        overrides: changes to the run config in its pyproject.toml.
        client_app: replaces the app's own, for tests.
        make_grid: gets the arguments of `InProcessGrid`.
    """
    with (app / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["tool"]["flwr"]
    components = declared["app"]["components"]
    run_config = get_fused_config_from_dir(app, overrides or {})
    server_app: ServerApp = load(app, components["serverapp"])
    client_app = client_app or load(app, components["clientapp"])
    run_id = secrets.randbits(63)
    nodes = make_nodes(num_supernodes, run_id, run_config)
    grid = make_grid(client_app, nodes, run_id, threads_of_a_client(declared))
    context = Context(
        run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    log(INFO, "%d clients in this process", num_supernodes)
    server_app(grid=cast(Grid, grid), context=context)


def make_nodes(count: int, run_id: int, run_config: dict[str, Any]) -> dict[int, Context]:
    """Return the contexts of `count` nodes, by random node ids, like Flower's."""
    return {
        secrets.randbits(63): Context(
            run_id=run_id,
            node_id=partition,
            node_config={"partition-id": partition, "num-partitions": count},
            state=RecordDict(),
            run_config=run_config,
        )
        for partition in range(count)
    }


def load(app: Path, component: str) -> Any:
    """Import a component of an app, "package.module:name"."""
    if str(app) not in sys.path:
        sys.path.insert(0, str(app))
    module, name = component.split(":")
    return getattr(import_module(module), name)


def threads_of_a_client(declared: dict[str, Any]) -> int:
    """Return the number of cores that the app's default federation gives each client."""
    federations = declared.get("federations", {})
    options = federations.get(federations.get("default"), {}).get("options", {})
    resources = options.get("backend", {}).get("client-resources", {})
    return max(1, int(resources.get("num-cpus", 1)))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.in_process",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--num-supernodes", type=int, required=True, help="number of clients")
    parser.add_argument(
        "--run-config", action="append", help="'key=value key=value', or a TOML file"
    )
    parser.add_argument("--app", type=Path, default=app_folder(), help="by default this one")
    arguments = parser.parse_args()
    if arguments.num_supernodes < 1:
        parser.error(f"--num-supernodes {arguments.num_supernodes}: at least 1 is needed")
    if not (arguments.app / "pyproject.toml").is_file():
        parser.error(f"--app {arguments.app}: holds no pyproject.toml; name the app's folder")
    end_on_signals()
    overrides: dict[str, Any] = {}
    for given in arguments.run_config or []:
        overrides |= parse_config_args([given])
    try:
        run_app(arguments.app, arguments.num_supernodes, overrides)
    except Exception as error:
        log(ERROR, traceback.format_exc())
        log(ERROR, "ServerApp raised an exception: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
