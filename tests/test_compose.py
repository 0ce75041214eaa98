"""docs/compose.yaml is valid, and its commands have options of the installed release."""

import re
import shlex
import shutil
import subprocess
from importlib.metadata import version

import pytest
import yaml
from on_this_machine import BIN, PINNED
from repository import ROOT

FILE = ROOT / "docs" / "compose.yaml"


def text() -> str:
    """Return the file as Compose reads it, with newest.env if that release is installed."""
    pairs = re.findall(r'^(\w+)="?(.*?)"?$', (FILE.parent / "newest.env").read_text(), re.MULTILINE)
    variables = {} if PINNED else dict(pairs)
    return re.sub(
        r"\$\{(\w+):-(.*?)\}", lambda match: variables.get(match[1], match[2]), FILE.read_text()
    )


def options(service: dict, program: str) -> dict[str, str]:
    """Return a service's options and their values; check that the program knows each option."""
    done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True)
    given = dict(word.partition("=")[::2] for word in shlex.split(service["command"]))
    assert not [option for option in given if not re.search(rf"{option}(?![\w-])", done.stdout)]
    return given


def mounted(service: dict) -> set[str]:
    return {volume.split(":")[1] for volume in service["volumes"]}


def test_flower_knows_every_option():
    services = yaml.safe_load(text())["services"]
    superlink = services.pop("superlink")
    assert "--enable-supernode-auth" in options(superlink, "flower-superlink")
    assert mounted(superlink) == {"/app/certificates", "/app/state"}
    keys = set()
    for service in services.values():
        given = options(service, "flower-supernode")
        assert given["--superlink"] == "superlink:9092"
        key = given["--auth-supernode-private-key"]
        assert mounted(service) == {given["--root-certificates"], key}
        keys.add(key)
    assert len(keys) == len(services) == 2


def test_images_are_of_the_release_that_is_installed():
    versions = re.findall(r"FROM flwr/\w+:(\S+)", text())
    assert len(versions) == 2
    assert set(versions) == {version("flwr")}


def test_docker_compose_accepts_the_file():
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"]).returncode:
        pytest.skip("there is no `docker compose` here")
    done = subprocess.run(
        ["docker", "compose", "--file", FILE, "config", "--quiet"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
