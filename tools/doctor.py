"""See whether this machine has what the examples need: a line for each thing, with what to do.

`ok` is fine, `mind` may matter to you, `STOP` keeps the offline runs from working; then, and only
then, the exit status is 1. Needs Python and no packages, for these may be what is missing.
"""

from __future__ import annotations  # an old Python shall get as far as being told that it is old

import importlib.util
import os
import re
import shutil
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OK, MIND, STOP = "ok", "mind", "STOP"
OLDEST, NEWEST = (3, 11), (3, 13)
MEMORY_GIB = 3  # what a simulation with two clients at work takes
DISK_GIB = 2  # environments aside: what the examples download at most for an offline run, and room
HUB_SECONDS = 3
PORTS = range(9091, 9096)  # of a SuperLink, and of two SuperNodes, in the READMEs
INSTALL = "`make install`, or `pip install -e .` in an example's folder"
GIB = 2**30


class Finding(NamedTuple):
    """What was seen of one thing, and what to do if it is not fine."""

    level: str
    text: str


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding(OK, f"{found}, {sys.executable}")
    return Finding(STOP, f"{found}, 3.11 to 3.13 needed: make PYTHON=/path/to/python3.12 install")


def cores() -> Finding:
    usable = getattr(os, "sched_getaffinity", None)
    count = len(usable(0)) if usable else os.cpu_count()
    return Finding(OK, f"{count}: a simulation has as many clients at work at once")


def memory() -> Finding:
    try:
        import psutil

        free = psutil.virtual_memory().available / GIB
    except ImportError:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 / GIB
    if free >= MEMORY_GIB:
        return Finding(OK, f"{free:.1f} GiB free")
    return Finding(
        MIND,
        f"{free:.1f} GiB free, two clients at work take {MEMORY_GIB}: end other programs, or let "
        "fewer work at once by more num-cpus for each, in [tool.flwr.federations]",
    )


def disk() -> Finding:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    free = shutil.disk_usage(existing(cache)).free / GIB
    if free >= DISK_GIB:
        return Finding(OK, f"{free:.1f} GiB free for {cache}")
    return Finding(
        MIND,
        f"{free:.1f} GiB free for {cache}, where models, data and features are kept: make room, "
        "or set XDG_CACHE_HOME and HF_HOME to folders elsewhere",
    )


def flower_home() -> Finding:
    data = os.environ.get("XDG_DATA_HOME") or Path.home()
    home = Path(os.environ.get("FLWR_HOME") or Path(data, ".flwr"))
    given = " (FLWR_HOME)" if os.environ.get("FLWR_HOME") else ""
    if os.access(existing(home), os.W_OK):
        return Finding(OK, f"{home}{given}")
    return Finding(MIND, f"{home}{given} is not yours to write: set FLWR_HOME to a folder that is")


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def flower() -> Finding:
    pin = re.findall(r'"flwr\[simulation\]==([^"]+)"', (ROOT / "pyproject.toml").read_text())[0]
    found = version("flwr")
    if found is None:
        return Finding(STOP, f"flwr is not installed for {sys.executable}: {INSTALL}")
    if found != pin:
        return Finding(STOP, f"{found}, the examples are made for flwr {pin}: {INSTALL}")
    if version("ray") is None:
        return Finding(STOP, f"{found} without Ray, which simulations need: {INSTALL}")
    return Finding(OK, f"{found}, with Ray {version('ray')}")


def examples() -> Finding:
    """Say of which examples all direct dependencies are installed."""
    whole, lacking = [], []
    for settings in sorted(ROOT.glob("examples/*/pyproject.toml")):
        section = re.search(r"\ndependencies = \[\n(.*?)\n\]", settings.read_text(), re.DOTALL)[1]
        names = re.findall(r'^ *"([\w.-]+)', section, re.MULTILINE)
        missing = [name for name in names if version(name) is None]
        if missing:
            lacking.append(f"{settings.parent.name} lacks {', '.join(missing)}")
        else:
            whole.append(settings.parent.name)
    if not lacking:
        return Finding(OK, f"all {len(whole)} can run: what they import is installed")
    if not whole:
        return Finding(STOP, f"none can run, packages that it imports are missing: {INSTALL}")
    return Finding(MIND, f"{', '.join(whole)} can run; {'; '.join(lacking)}: {INSTALL}")


def versions() -> Finding:
    """Compare what is installed with what the tests ran with."""
    if version("flwr") is None:
        return Finding(OK, "nothing to compare yet")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested: dict[str, set[str]] = {}
    for name, number in (re.match(r"([^=]+)==([^ ]+)", line).groups() for line in lines):
        tested.setdefault(name, set()).add(number)
    found = {name: version(name) for name in tested}
    found = {name: number for name, number in found.items() if number is not None}
    others = [name for name, number in found.items() if number.split("+")[0] not in tested[name]]
    if not others:
        return Finding(OK, f"{len(found)} of the packages in constraints.txt, in those versions")
    named = ", ".join(f"{n} {found[n]} ({' or '.join(sorted(tested[n]))})" for n in others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return Finding(
        MIND,
        f"not what the tests ran with: {named}{more}; if something fails, `make install`, or "
        "`pip install -c constraints.txt -e examples/…`",
    )


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def bytecode() -> Finding:
    """See whether Python may keep what it compiles, if PyTorch is not compiled yet."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return Finding(OK, "nothing to compile yet")
    if Path(importlib.util.cache_from_source(spec.origin)).exists():
        return Finding(OK, "packages are compiled")
    if not sys.dont_write_bytecode:
        return Finding(OK, "packages are compiled when they are first imported")
    packages = Path(spec.origin).parents[1]
    return Finding(
        MIND,
        "PYTHONDONTWRITEBYTECODE is set, so each process compiles all that it imports anew, and "
        f"starts much more slowly: unset it, or `python -m compileall -q {packages}`",
    )


def gpu() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding(MIND, "not known before PyTorch is installed; the examples need none")
    try:
        import torch
    except Exception as error:  # a damaged installation may raise anything
        return Finding(STOP, f"PyTorch cannot be imported ({error}): {INSTALL}")
    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        return Finding(OK, f"{count} x {name}: `flwr run . local-sim-gpu`, `make check-gpu`")
    if shutil.which("nvidia-smi"):
        return Finding(
            MIND,
            f"PyTorch {torch.__version__} sees none, though there is nvidia-smi: everything runs "
            "on the CPU; see CUDA_VISIBLE_DEVICES, the driver, and whether PyTorch is a CUDA build",
        )
    return Finding(OK, "PyTorch sees none: everything runs on the CPU, as the offline runs do")


def ray_cluster() -> Finding:
    """Look for a cluster that simulations would attach to, as Ray looks for it."""
    system = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"
    note = Path(os.environ.get("RAY_TMPDIR", system), "ray", "ray_current_cluster")
    if not note.exists():
        return Finding(OK, "none: each simulation starts its own")
    address = note.read_text().strip()
    if answers(address):
        return Finding(MIND, f"{address} is up: simulations attach to it, and end when it ends")
    return Finding(
        STOP,
        f"{note} names {address}, which does not answer: simulations wait for it, and fail. "
        "`ray stop` clears that",
    )


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def ports() -> Finding:
    taken = [str(port) for port in PORTS if not is_free(port)]
    if not taken:
        return Finding(OK, f"{PORTS[0]} to {PORTS[-1]} are free")
    return Finding(
        MIND,
        f"taken: {', '.join(taken)}; give a SuperLink or SuperNode that you start by hand others. "
        "`make run` needs none, `make federation` finds free ones",
    )


def is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def proxies() -> Finding:
    """See whether gRPC would go through a proxy even to this machine; it reads small letters."""
    used = [n for n in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(n)]
    exempt = next(filter(None, map(os.environ.get, ("no_grpc_proxy", "no_proxy"))), "")
    if not used or "127.0.0.1" in re.split(r"[ ,]+", exempt):
        return Finding(OK, "none between SuperLink and SuperNodes on this machine")
    return Finding(
        MIND,
        f"Flower's connections to this machine go through {used[0]}, and SuperNodes try for ever: "
        "`export no_grpc_proxy=127.0.0.1` (small letters). Simulations do not mind",
    )


def hub() -> Finding:
    """See whether the Hub answers; looking up its name may take longer than one will wait."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    reached: list[bool] = []
    thread = threading.Thread(target=lambda: reached.append(opens(address)), daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if any(reached):
        return Finding(OK, f"{address} answers")
    return Finding(
        MIND,
        f"{address} does not answer within {HUB_SECONDS} s: use `make run`, offline.toml, and "
        "local folders for `dataset` and models",
    )


def opens(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:  # an answer, too
        return True
    except (OSError, ValueError):
        return False
    return True


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "Flower": flower,
    "Examples": examples,
    "Versions": versions,
    "Cores": cores,
    "Memory": memory,
    "Disk": disk,
    "Bytecode": bytecode,
    "GPU": gpu,
    "Ray cluster": ray_cluster,
    "Flower's folder": flower_home,
    "Ports": ports,
    "Proxies": proxies,
    "Hub": hub,
}


def main() -> int:
    stopped = []
    for subject, check in CHECKS.items():
        try:
            level, text = check()
        except Exception as error:  # the other lines are worth having
            level, text = MIND, f"could not be looked at: {type(error).__name__}: {error}"
        print(f"{level:<5} {subject + ':':<16} {text}", flush=True)
        stopped += [subject] * (level == STOP)
    if stopped:
        print(f"\nTo be mended before the examples run: {', '.join(stopped)}.")
        return 1
    print("\nNothing here keeps an example from running offline: `make run`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
