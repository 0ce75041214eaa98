# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Differences between Flower's releases in how a federation of real processes is started.

1.25 is pinned; the newest is the last that was tested. Releases between them are not tested.
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
    """flwr 1.25: one address for each API, federations in pyproject.toml, two faults mended."""

    environment: ClassVar[dict[str, str]] = {}  # for every part

    def apis(self) -> dict[str, str]:
        """Return the address of each of a SuperLink's APIs, on a free port."""
        return dict(zip(("control", "fleet", "serverappio"), free_addresses(3), strict=True))

    def superlink(self, apis: dict[str, str]) -> list[str]:
        """Return the command of a SuperLink, without TLS, keys and database."""
        command = [sys.executable, "-P", str(HERE / "superlink.py")]
        for name, address in apis.items():
            command += [f"--{name}-api-address", address]
        return command

    def supernode(self, address: str) -> list[str]:
        """Return the command of a SuperNode with the address for its ClientApps."""
        program = [sys.executable, "-P", str(HERE / "supernode.py")]
        return [*program, "--clientappio-api-address", address]

    def declare(self, app: Path, home: Path, name: str, settings: str) -> None:
        """Write a federation where `flwr` looks for it."""
        with (app / "pyproject.toml").open("a") as file:
            file.write(f"\n[tool.flwr.federations.{name}]\n{settings}")

    def named(self, app: Path, name: str | None) -> list[str]:
        """Return the arguments that name a federation to `flwr log`, `ls`, `stop`, `supernode`.

        Args:
            app: the app's folder.
            name: of the federation; the default one if None.
        """
        return [str(app), *filter(None, [name])]

    def to_run(self, app: Path, home: Path, name: str) -> str:
        """Return the command that starts a run, for the user."""
        return shlex.join(["flwr", "run", str(app), name])


class Newest(Pinned):
    """flwr 1.42: one address for all APIs, federations in FLWR_HOME's config.toml, no mending."""

    # No installation of the app's dependencies at each run, no question for newer releases.
    environment: ClassVar = {
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Seconds, by default 1. Much less makes ClientApps ask too early, and wait longer.
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
    """Return a SuperLink's address and trusted authority, if any, as TOML."""
    trust = f"root-certificates = {json.dumps(str(ca))}" if ca else "insecure = true"
    return f'address = "{address}"\n{trust}\n'


RELEASE = Pinned() if version("flwr").startswith("1.25.") else Newest()
