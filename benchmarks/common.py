"""Common parts of the measurements: provenance, simulation, files."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from repository import ROOT, flatten, flower_settings, load_toml

sys.path.append(str(ROOT))  # for `import kit`

from kit.settings import as_run_config

# `import vit_finetune` shall find the package, not the script of that name in this folder; in
# spawned processes, too, where this runs again.
HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != HERE] + [HERE]
PACKAGES = ("flwr", "flwr-datasets", "ray", "torch", "torchvision", "numpy", "datasets")
PACKAGES += ("transformers", "peft", "bitsandbytes")
SEED = 42  # the examples' own
ONE_CPU = '{"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}'


def default_dataset(folder: str, hub_name: str) -> str:
    """Return the real dataset under FLOWER_EXAMPLES_DATA if there is one, else its Hub name."""
    local = Path(os.environ.get("FLOWER_EXAMPLES_DATA", "."), folder)
    return str(local.resolve()) if local.exists() else hub_name


def declared_config(app: Path, *, offline: bool = False) -> dict[str, Any]:
    """Return an app's run config as Flower passes it on, with offline.toml if `offline`."""
    declared = flatten(flower_settings(app)["app"]["config"])
    return declared | (flatten(load_toml(app / "offline.toml")) if offline else {})


@contextmanager
def measurement(
    name: str, seeds: Sequence[int], *, trial: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for the figures; write it to `results/<name>.json` at the end.

    It has all that is needed to repeat the measurement, and how quiet the machine was: the share of
    the processors' time that other virtual machines on the host had. A measurement that fails
    writes nothing.

    Args:
        name: of the file.
        seeds: all that the measurement uses.
        trial: write nothing: only the script is tried.
    """
    result, began, before = provenance(seeds), time.monotonic(), psutil.cpu_times()
    yield result
    result["wall_seconds"] = round(time.monotonic() - began, 1)
    result["stolen_share"] = round(stolen_share(before, psutil.cpu_times()), 3)
    if trial:
        print("a trial: nothing written")
        return
    path = ROOT / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


def stolen_share(before: Any, after: Any) -> float:
    """Return the share of the processors' time that the host gave to others; 0 if not known."""
    stolen = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    return stolen / (sum(after) - sum(before))


def provenance(seeds: Sequence[int]) -> dict[str, Any]:
    """Return place, time and code of a measurement."""
    return {
        "command": command(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": processor(),
            "instructions": instructions(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "gpu": gpu(),
        },
        "python": platform.python_version(),
        "packages": versions(),
        "seeds": list(seeds),
    }


def versions() -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def instructions() -> str:
    """Return the processor's widest instructions that PyTorch uses, AVX2 for instance."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def gpu() -> str | None:
    """Return the name of the GPU; None if there is none."""
    import torch  # imported here: it is slow

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def command() -> str:
    """Return the command that was given, without the paths of this machine."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", str(script), *words])


def commit() -> str:
    """Return the measured commit, with "-changed" if the measured code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "examples", "benchmarks")
    return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def simulate(
    app: Path, nodes: int, run_config: dict[str, Any], folder: Path, backend: str = ONE_CPU
) -> Iterator[str]:
    """Run an app with `flower-simulation` in a folder and yield its log line by line.

    Raises:
        RuntimeError: the app failed; the text ends with its last lines.
    """
    command = [Path(sys.executable).parent / "flower-simulation", "--app", app]
    command += ["--num-supernodes", nodes, "--backend-config", backend]
    command += ["--run-config", as_run_config(run_config)]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        yield line
    if process.wait() != 0:
        raise RuntimeError(f"{app} failed:\n{''.join(lines[-30:])}")


def history(folder: Path) -> list[dict[str, Any]]:
    """Return results.json of the only run in a folder: an object for each round."""
    [results] = folder.glob("outputs/*/*/results.json")
    return json.loads(results.read_text())


def in_words(row: dict[str, Any]) -> str:
    """Return the cells of a row in words, floats to four places."""
    cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    return ", ".join(cells)
