"""docs/compose.yaml: valid, of the pinned release, and every command in it is accepted."""

import re
import shutil
import subprocess

import pytest
import yaml
from flwr.server.app import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from repository import ROOT, load_toml

FILE = ROOT / "docs" / "compose.yaml"


def test_flower_accepts_every_command():
    services = yaml.safe_load(FILE.read_text())["services"]
    superlink = services.pop("superlink")
    options = _parse_args_run_superlink().parse_args(superlink["command"])
    assert options.enable_supernode_auth
    mounted = {volume.split(":")[1] for volume in superlink["volumes"]}
    assert {"/app/certificates", "/app/state"} == mounted
    keys = set()
    for service in services.values():
        options = _parse_args_run_supernode().parse_args(service["command"])
        assert options.superlink == "superlink:9092"
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        assert mounted == {options.root_certificates, options.auth_supernode_private_key}
        keys.add(options.auth_supernode_private_key)
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
