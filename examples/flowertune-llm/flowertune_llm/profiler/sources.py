"""Where the profile of a run is found: beside its results, or in its log on a SuperLink."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from flowertune_llm.profiler.recorder import FILE, MARK

ANSWER_SECONDS = 8  # for a SuperLink to answer
LOOK_SECONDS = 0.5  # between two looks at a file
Profile = dict[str, Any]  # as in profile.json: run_ids, status, rounds


class NoProfile(Exception):
    """There is nothing to show; the text says why, in one line."""


def from_folder(folder: Path, live: bool) -> Iterator[Profile]:
    """Yield the profile in an output folder; if live, each time it has changed, to the run's end.

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
    """Yield the profile that a run has logged so far; if live, after each round, to its end.

    Args:
        app: the app's folder, whose pyproject.toml says where the SuperLink is, as for `flwr log`.
        federation: of that pyproject.toml; its default one if None.

    Raises:
        NoProfile: no answer, no such run, or no profile in its log.
        typer.Exit: Flower has said what is wrong with pyproject.toml.
    """
    # Only here: a run in a folder is shown without what gRPC and Flower's CLI take to import.
    from flwr.proto.control_pb2 import ListRunsRequest
    from flwr.proto.control_pb2_grpc import ControlStub

    channel, address = connect(app, federation)
    stub, profile = ControlStub(channel), None
    with channel, explained(run_id, address):

        def status() -> str:
            request = ListRunsRequest(run_id=run_id)
            found = stub.ListRuns(request, timeout=ANSWER_SECONDS).run_dict[run_id].status
            return found.sub_status if found.status == "finished" else "running"

        state = status()
        for line in log_lines(stub, run_id, live):
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
        yield profile | {"status": status() if live else state}


def connect(app: Path, federation: str | None) -> tuple[Any, str]:
    """Return a channel to a federation's SuperLink, as `flwr log` makes it, and its address."""
    try:
        from flwr.cli.config_utils import (
            load_and_validate,
            process_loaded_project_config,
            validate_federation_in_project_config,
        )
        from flwr.cli.utils import init_channel, load_cli_auth_plugin
    except ImportError:  # newer releases ask SuperLinks in another way
        raise NoProfile(
            "a SuperLink can be asked with flwr 1.25, not with this release; name the output folder"
        ) from None

    with redirect_stdout(StringIO()):  # Flower says "Success" there, where our JSON goes
        loaded = load_and_validate(app / "pyproject.toml", check_module=False)
        config = process_loaded_project_config(*loaded)
        name, settings = validate_federation_in_project_config(federation, config)
        if "address" not in settings:
            raise NoProfile(
                f"federation {name} of {app} has no address: it is simulated; leave --app and "
                "--federation out"
            )
        auth = load_cli_auth_plugin(app, name, settings)
        return init_channel(app, settings, auth), settings["address"]


def log_lines(stub: Any, run_id: int, live: bool) -> Iterator[str]:
    """Yield the lines of a run's log; if live, until the run ends."""
    import grpc
    from flwr.common.constant import CONN_REFRESH_PERIOD
    from flwr.proto.control_pb2 import StreamLogsRequest

    after, rest = 0.0, ""
    while True:
        request = StreamLogsRequest(run_id=run_id, after_timestamp=after)
        try:
            timeout = CONN_REFRESH_PERIOD if live else ANSWER_SECONDS
            for answer in stub.StreamLogs(request, timeout=timeout):
                after = max(after, answer.latest_timestamp)
                *lines, rest = (rest + answer.log_output).split("\n")
                yield from lines
                if not live:  # the first answer holds all that was logged so far
                    return
            return
        except grpc.RpcError as error:  # a period ends; or nothing is logged yet
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            if not live:
                return


@contextmanager
def explained(run_id: int, address: str) -> Iterator[None]:
    """Say in one line what a SuperLink's error means; those of accounts are said by Flower.

    Raises:
        NoProfile: in place of gRPC's error.
        typer.Exit: Flower has said what it means.
    """
    import grpc
    from flwr.cli.utils import flwr_cli_grpc_exc_handler

    try:
        yield
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise NoProfile(
                f"no SuperLink answers at {address}, or its certificate is not the one trusted: "
                "see the federation in pyproject.toml"
            ) from None
        if code == grpc.StatusCode.NOT_FOUND:
            raise NoProfile(f"run {run_id}: the SuperLink at {address} knows no such run") from None
        try:
            with flwr_cli_grpc_exc_handler():
                raise
        except grpc.RpcError:
            message = f"run {run_id}: the SuperLink at {address} says: {error.details()}"
            raise NoProfile(message) from None
