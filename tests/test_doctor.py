"""`make doctor` on this machine as it is, and with one thing wrong at a time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from doctor import CHECKS, MIND, OK, PORTS, STOP
from repository import ROOT

DOCTOR = ROOT / "tools" / "doctor.py"


@pytest.fixture
def doctor(tmp_path):
    """Run the doctor as a user does; Ray's notes are those of this test."""

    def run(python: Path | str = sys.executable, **changes: str) -> tuple[int, dict[str, str]]:
        own = {"RAY_TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [python, DOCTOR],
            env=os.environ | own | changes,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not done.stderr
        lines = done.stdout.split("\n\n")[0].splitlines()
        assert len(lines) == len(CHECKS)
        return done.returncode, {line[6:].split(":")[0]: line for line in lines}

    return run


def test_this_machine_can_run_the_examples(doctor):
    status, lines = doctor()
    assert list(lines) == list(CHECKS)
    assert status == 0, lines
    for subject in ("Python", "Flower", "Bytecode", "Ray cluster"):
        assert lines[subject].startswith("ok "), lines[subject]
    assert "sees none" in lines["GPU"]  # for this test shows it none
    assert "everything runs on the CPU" in lines["GPU"]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", PORTS[1]))
        other.listen()
        level, text = CHECKS["Ports"]()
    assert level == MIND
    assert str(PORTS[1]) in text


def test_a_cluster_that_is_gone_stops_simulations(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        level, text = CHECKS["Ray cluster"]()
        assert level == STOP
        assert "`ray stop`" in text

        nobody.listen()
        level, text = CHECKS["Ray cluster"]()
        assert level == MIND
        assert f"{address} is up" in text


def test_another_flower_is_told_from_the_pinned_one(doctor, tmp_path):
    """A folder of metadata, as from pip, is found before that of the pinned release."""
    metadata = tmp_path / "flwr-1.41.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.41.0\n")
    status, lines = doctor(PYTHONPATH=str(tmp_path))
    assert status == 1
    assert lines["Flower"].startswith("STOP ")
    assert "1.41.0, the examples are made for flwr 1.25.0" in lines["Flower"]


def test_an_empty_environment_is_told_what_to_do(doctor, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    status, lines = doctor(tmp_path / "venv" / "bin" / "python")
    assert status == 1
    for subject in ("Flower", "GPU"):
        assert lines[subject].startswith("STOP ")
        assert "`make install`" in lines[subject]


def test_compiling_at_each_start_is_named(monkeypatch, tmp_path):
    """The folder of compiled files is empty, and nothing may be written into it."""
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "compiled"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    level, text = CHECKS["Bytecode"]()
    assert level == MIND
    assert "python -m compileall -q /" in text
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert CHECKS["Bytecode"]()[0] == OK


def test_a_proxy_before_this_machine_is_named(monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    level, text = CHECKS["Proxies"]()
    assert level == MIND
    assert "`export no_grpc_proxy=127.0.0.1`" in text
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert CHECKS["Proxies"]()[0] == OK
