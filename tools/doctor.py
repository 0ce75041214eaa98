"""See whether this machine has what the examples need: a line for each thing, with what to do.

`ok` is fine, `mind` may matter to you, and `STOP` keeps the offline runs from working: only with
it, the exit status is 1. Needs Python and no packages, since these may be missing.
"""

from __future__ import annotations  # so that an old Python can run the check of its version

import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OK, MIND, STOP = "ok", "mind", "STOP"
OLDEST, NEWEST = (3, 11), (3, 13)
MEMORY_GIB = 3  # of a simulation with two clients at work
PORTS = range(9091, 9096)  # of a SuperLink, and of two SuperNodes, in docs/deployment.md
INSTALL = "`make install`, or `pip install -e .` in an example's folder"
Finding = "tuple[str, str]"  # a level; what was seen, and what to do about it


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return OK, f"{found}, {sys.executable}"
    return STOP, f"{found}, 3.11 to 3.13 needed: make PYTHON=/path/to/python3.12 install"


def flower() -> Finding:
    pin = re.findall(r'"flwr\[simulation\]==([^"]+)"', (ROOT / "pyproject.toml").read_text())[0]
    try:
        found, ray = metadata.version("flwr"), metadata.version("ray")
    except metadata.PackageNotFoundError as error:
        return STOP, f"{error.name} is not installed for {sys.executable}: {INSTALL}"
    if found != pin:
        return STOP, f"{found}, the examples are made for flwr {pin}: {INSTALL}"
    return OK, f"{found}, with Ray {ray}"


def memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free >= MEMORY_GIB:
        return OK, f"{free:.1f} GiB free"
    return MIND, (
        f"{free:.1f} GiB free, two clients at work take {MEMORY_GIB}: end other programs, or let "
        "fewer work at once by more num-cpus for each, in [tool.flwr.federations]"
    )


def bytecode() -> Finding:
    """See whether Python may write compiled files, if PyTorch is not compiled yet."""
    spec = importlib.util.find_spec("torch")
    compiled = spec and Path(importlib.util.cache_from_source(spec.origin)).exists()
    if not spec or compiled or not sys.dont_write_bytecode:
        return OK, "packages are compiled once"
    return MIND, (
        "PYTHONDONTWRITEBYTECODE is set, so each process compiles all that it imports anew, and "
        "starts much more slowly: unset it, or `python -m compileall -q "
        f"{Path(spec.origin).parents[1]}`"
    )


def gpu() -> Finding:
    try:
        import torch
    except Exception as error:  # a damaged installation may raise anything
        return STOP, f"PyTorch cannot be imported ({error}): {INSTALL}"
    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        return OK, f"{count} x {name}: `flwr run . local-sim-gpu`, `make check-gpu`"
    if shutil.which("nvidia-smi"):
        return MIND, (
            f"PyTorch {torch.__version__} sees none, though there is nvidia-smi: everything runs "
            "on the CPU; see CUDA_VISIBLE_DEVICES, the driver, and whether PyTorch is a CUDA build"
        )
    return OK, "PyTorch sees none: everything runs on the CPU, as the offline runs do"


def ray_cluster() -> Finding:
    """Look for a running cluster where Ray does: simulations would attach to it."""
    system = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"
    note = Path(os.environ.get("RAY_TMPDIR", system), "ray", "ray_current_cluster")
    if not note.exists():
        return OK, "none: each simulation starts its own"
    address = note.read_text().strip()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return STOP, (
            f"{note} names {address}, which does not answer: simulations wait for it, and fail. "
            "`ray stop` clears that"
        )
    return MIND, f"{address} is up: simulations attach to it, and end when it ends"


def ports() -> Finding:
    taken = []
    for port in PORTS:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                taken.append(str(port))
    if not taken:
        return OK, f"{PORTS[0]} to {PORTS[-1]} are free"
    return MIND, (
        f"taken: {', '.join(taken)}; give a SuperLink or SuperNode that you start by hand others. "
        "`make run` needs none, `make federation` finds free ones"
    )


def proxies() -> Finding:
    """See whether gRPC goes through a proxy even to this machine; it reads small letters only."""
    used = [n for n in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(n)]
    exempt = next(filter(None, map(os.environ.get, ("no_grpc_proxy", "no_proxy"))), "")
    if not used or "127.0.0.1" in re.split(r"[ ,]+", exempt):
        return OK, "none between SuperLink and SuperNodes on this machine"
    return MIND, (
        f"Flower's connections to this machine go through {used[0]}, and SuperNodes try for ever: "
        "`export no_grpc_proxy=127.0.0.1` (small letters). Simulations do not mind"
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "Flower": flower,
    "Memory": memory,
    "Bytecode": bytecode,
    "GPU": gpu,
    "Ray cluster": ray_cluster,
    "Ports": ports,
    "Proxies": proxies,
}


def main() -> int:
    stopped = []
    for subject, check in CHECKS.items():
        try:
            level, text = check()
        except Exception as error:  # the other checks go on
            level, text = MIND, f"could not be looked at: {type(error).__name__}: {error}"
        print(f"{level:<5} {subject + ':':<13} {text}", flush=True)
        stopped += [subject] * (level == STOP)
    if stopped:
        print(f"\nTo be mended before the examples run: {', '.join(stopped)}.")
        return 1
    print("\nNothing here keeps an example from running offline: `make run`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
