# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What differs between Flower's releases where real processes make a federation.

The pinned one is 1.25. The newest is the one that was tested last; what lies between is not tested.
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from .addresses import free_addresses

HERE = Path(__file__).resolve().parent


class Pinned:
    """flwr 1.25: an address for each API, federations in pyproject.toml, two faults mended here."""

    environment: ClassVar[dict[str, str]] = {}  # of every part

    def apis(self) -> dict[str, str]:
        """Return the address of each of a SuperLink's APIs, on ports that are free."""
        return dict(zip(("control", "fleet", "serverappio"), free_addresses(3), strict=True))

    def superlink(self, apis: dict[str, str]) -> list[str]:
        """Return the command of a SuperLink, without TLS, keys and database."""
        command = [sys.executable, "-P", str(HERE / "superlink.py")]
        for name, address in apis.items():
            command += [f"--{name}-api-address", address]
        return command

    def supernode(self, address: str) -> list[str]:
        """Return the command of a SuperNode, which serves its ClientApps at an address."""
        program = [sys.executable, "-P", str(HERE / "supernode.py")]
        return [*program, "--clientappio-api-address", address]

    def declare(self, app: Path, home: Path, name: str, settings: str) -> None:
        """Write down where `flwr` finds a federation."""
        with (app / "pyproject.toml").open("a") as file:
            file.write(f"\n[tool.flwr.federations.{name}]\n{settings}")

    def named(self, app: Path, name: str | None) -> list[str]:
        """Return how `flwr log`, `ls`, `stop` and `supernode` are told of a federation.

        Args:
            app: the app's folder.
            name: of the federation; the default one if None.
        """
        return [str(app), *filter(None, [name])]

    def to_run(self, app: Path, home: Path, name: str) -> str:
        """Return the command with which the user starts a run."""
        return shlex.join(["flwr", "run", str(app), name])


class Newest(Pinned):
    """flwr 1.42: one address for all, federations in config.toml of FLWR_HOME; nothing mended."""

    # Else each run installs the app's dependencies anew, and each program asks for newer releases.
    environment: ClassVar = {
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Seconds, by default 1. With much less, ClientApps ask for what is not there yet, and wait.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    }

    def apis(self) -> dict[str, str]:
        return dict.fromkeys(("control", "fleet"), *free_addresses(1))

    def superlink(self, apis: dict[str, str]) -> list[str]:
        return ["flower-superlink", *as_options(apis["fleet"])]

    def supernode(self, address: str) -> list[str]:
        return ["flower-supernode", *as_options(address)]

    def declare(self, app: Path, home: Path, name: str, settings: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "config.toml").open("a") as file:
            file.write(f"\n[superlink.{name}]\n{settings}")

    def named(self, app: Path, name: str | None) -> list[str]:
        return [*filter(None, [name])]

    def to_run(self, app: Path, home: Path, name: str) -> str:
        return f"FLWR_HOME={shlex.quote(str(home))} {super().to_run(app, home, name)}"


def as_options(address: str) -> list[str]:
    host, port = address.split(":")
    return ["--host", host, "--port", port]


def connection(address: str, ca: Path | None) -> str:
    """Return, as TOML, where a SuperLink is and which authority is trusted; none without TLS."""
    trust = f"root-certificates = {json.dumps(str(ca))}" if ca else "insecure = true"
    return f'address = "{address}"\n{trust}\n'


RELEASE = Pinned() if version("flwr").startswith("1.25.") else Newest()
