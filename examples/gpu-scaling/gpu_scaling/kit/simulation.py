# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The app in a simulation on Ray, by the command of whichever Flower release is installed.

    python -m <package>.kit.simulation local-sim-gpu --run-config offline.toml

Outputs go where you stand, the exit status is that of the run, and nothing is left running. Newer
Flower hands a simulation to a SuperLink that stays: each run gets one of its own here, with a home
and a port of its own, so that runs cannot take each other's federation or environment.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, Self

from flwr.common.config import parse_config_args

from . import app_folder
from .federation import LEFT_OUT, FederationError, exit_on_signals, uninterrupted
from .federation.addresses import LOOPBACK
from .federation.releases import RELEASE, Newest, connection
from .processes import end_with_parent, kill_descendants
from .settings import as_run_config

BIN = Path(sys.executable).parent
LINUX = sys.platform == "linux"
DEFAULT = "local-simulation"
START_SECONDS = 300  # for the SuperLink to answer
COMPLETED = "finished:completed"


def read(app: Path, name: str) -> dict[str, Any]:
    """Return a federation of an app, one of the files in federations/.

    Raises:
        ValueError: there is none of that name.
    """
    folder = app / "federations"
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in names:
        raise ValueError(f"{name}: no such file in {folder}; there are {', '.join(names)}")
    return tomllib.loads((folder / f"{name}.toml").read_text())


def flower_simulation(app: Path, federation: dict[str, Any], run_config: str) -> list[str]:
    """Return the command that simulates an app on the pinned Flower release."""
    backend: dict[str, dict[str, Any]] = {}
    for key, value in federation.items():
        for part in ("client-resources", "init-args"):
            if key.startswith(f"{part}-"):
                backend.setdefault(part, {})[key.removeprefix(f"{part}-")] = value
    command = ["flower-simulation", "--app", str(app), "--num-supernodes"]
    command += [str(federation["num-supernodes"]), "--backend-config", json.dumps(backend)]
    return command + (["--run-config", run_config] if run_config else [])


class OwnSuperLink:
    """A SuperLink for one simulation on newer Flower; a context in which it runs.

    Args:
        app: the app's folder; a copy of it is run, since `flwr run` changes its pyproject.toml.
        folder: a new one for the copy, and for all that Flower writes.
    """

    def __init__(self, app: Path, folder: Path) -> None:
        self.app, self.home = folder / "app", folder / "home"
        shutil.copytree(app, self.app, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if (app / ".gitignore").is_file():
            shutil.copy(app / ".gitignore", self.app)
        self.home.mkdir()
        own = {"FLWR_HOME": str(self.home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        for name in ("no_proxy", "NO_PROXY"):  # no proxy is between this machine and itself
            own[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK]))
        self.environment = os.environ | RELEASE.environment | own
        apis = RELEASE.apis()
        own_one = connection(apis["control"], None)
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n[superlink.own]\n{own_one}'
        )
        self.command = [*RELEASE.superlink(apis), "--insecure", "--simulation"]

    def __enter__(self) -> Self:
        launcher, self.log = os.getpid(), self.home / "superlink.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [BIN / self.command[0], *self.command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=(lambda: end_with_parent(launcher)) if LINUX else None,
            )
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            kill_descendants()  # several are in a group of their own
            self.process.wait()

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            FederationError: it has ended, or takes too long; the text ends with its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self.call("ls").get("success"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace").strip().splitlines()[-15:]
                raise FederationError("\n".join(["the SuperLink does not answer:", *tail]))

    def run(self, federation: Path, run_config: str) -> str:
        """Run the app, print its log as it comes, and return the run's status in the end.

        Raises:
            FederationError: Flower refuses it; the text says why.
        """
        command = ["run", str(self.app), "--federation-config", str(federation)]
        answer = self.call(*command, *(["--run-config", run_config] if run_config else []))
        if not answer.get("success"):
            raise FederationError(answer["error-message"])
        run_id = str(answer["run-id"])
        subprocess.run([BIN / "flwr", "log", run_id, "--stream"], env=self.environment)
        return self.call("ls", "--run-id", run_id)["runs"][0]["status"]

    def call(self, *words: str) -> dict[str, Any]:
        """Return what one of Flower's commands answers."""
        done = subprocess.run(
            [BIN / "flwr", *words, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        try:
            return json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            return {"error-message": f"{done.stdout}{done.stderr}".strip()}


def on_own_superlink(app: Path, federation: Path, run_config: str) -> int:
    """Run a simulation on newer Flower; return the exit status that tells how it ended."""
    exit_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="simulation-"))
    try:
        with OwnSuperLink(app, folder) as superlink:
            status = superlink.run(federation, run_config)
    except FederationError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: taken down")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Run: {status}")
    return int(status != COMPLETED)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("federation", nargs="?", default=DEFAULT, help="a file in federations/")
    parser.add_argument(
        "--run-config", action="append", help="'key=value key=value', or a TOML file"
    )
    parser.add_argument("--app", type=Path, default=app_folder(), help="by default this one")
    arguments = parser.parse_args()
    app, overrides = arguments.app, {}
    try:
        federation = read(app, arguments.federation)
        for given in arguments.run_config or []:
            overrides |= parse_config_args([given])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    run_config = as_run_config(overrides)
    if isinstance(RELEASE, Newest):
        file = app.resolve() / "federations" / f"{arguments.federation}.toml"
        return on_own_superlink(app.resolve(), file, run_config)
    command = flower_simulation(app, federation, run_config)
    print(f"$ {shlex.join(command)}", flush=True)
    os.execv(BIN / command[0], [str(BIN / command[0]), *command[1:]])


if __name__ == "__main__":
    sys.exit(main())
