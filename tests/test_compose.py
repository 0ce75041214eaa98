"""docs/compose.yaml: valid, of the pinned release, and its commands have options that there are."""

import re
import shutil
import subprocess

import pytest
import yaml
from on_this_machine import BIN
from repository import ROOT, load_toml

FILE = ROOT / "docs" / "compose.yaml"


def options(service: dict, program: str) -> dict[str, str]:
    """Return a service's options, each of which the program knows, and their values."""
    done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True)
    given = dict(word.partition("=")[::2] for word in service["command"])
    assert not [option for option in given if not re.search(rf"{option}(?![\w-])", done.stdout)]
    return given


def mounted(service: dict) -> set[str]:
    return {volume.split(":")[1] for volume in service["volumes"]}


def test_flower_knows_every_option():
    services = yaml.safe_load(FILE.read_text())["services"]
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


def test_images_are_of_the_pinned_release():
    [pin] = load_toml(ROOT / "pyproject.toml")["project"]["dependencies"]
    versions = re.findall(r"FROM flwr/\w+:(\S+)", FILE.read_text())
    assert len(versions) == 2
    assert set(versions) == {pin.split("==")[1]}


def test_docker_compose_accepts_the_file():
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"]).returncode:
        pytest.skip("there is no `docker compose` here")
    done = subprocess.run(
        ["docker", "compose", "--file", FILE, "config", "--quiet"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
