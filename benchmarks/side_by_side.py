"""Our five examples beside what else one could pick, on the same data, seeds and machine.

Each example is a job, and each job is done in several ways; benchmarks/README.md says what they
are and how each figure is defined. Three parts, which write a file each:

- rounds: seconds a round, memory, bytes on the wire, and the score after each round.
- fresh: installation into an empty environment, then the time until the first round's result.
- pfl: as rounds, beside the simulation of pfl-research, which is made to be fast.

Both take the real data under FLOWER_EXAMPLES_DATA where it is there, else that of the Hub. A run of
some jobs or ways only, or with another number of rounds, is a try: it prints and writes nothing.
"""

import argparse
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from common import ONE_CPU, ROOT, SEED, declared_config, default_dataset, measurement
from repository import load_toml
from watch import Memory

from kit.settings import as_run_config

RIVALS = ROOT / "benchmarks" / "rivals"
WAYS = ("plain", "example", "straightforward", "other")
FLARE = ("NVIDIA FLARE", "nvflare==2.9.0")
PFL = ("pfl-research", "pfl[pytorch]==0.6.0")
PFL_WAYS = {"pfl": 1, "pfl-two": 2}  # and their processes
POPULATION, IMAGES = 100_000, 33
UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
RunConfig = dict[str, Any]


class Job(NamedTuple):
    """An example, and what is asked of it.

    Attributes:
        app: the example's folder.
        clients: how many there are.
        config: the example's run config; its data, seed and settings hold for all ways.
        rival: the folder of the straightforward app for it, and what is set there.
        other: whether another framework does it, too.
        nodes: of Flower, where they are not as many as the clients.
    """

    app: Path
    clients: int
    config: RunConfig
    rival: tuple[Path, RunConfig]
    other: bool = False
    nodes: int = 0


def vit_finetune(folder: Path) -> Job:
    app = ROOT / "examples" / "vit-finetune"
    weights = default_dataset("vit-tiny/vit_tiny_patch16_224_torchvision.pth", "none")
    config = declared_config(app) | {
        "dataset": default_dataset("oxford-flowers", "nelorth/oxford-flowers"),
        "model.name": "vit_tiny",
        "model.weights": weights,
        "model.normalization": "half",
        "num-server-rounds": 5,
        "local-epochs": 1,  # more would take the straightforward app many minutes
    }
    rival = same(config, "dataset", "test-fraction", "fraction-train", "fraction-evaluate")
    rival |= same(config, "local-epochs", "batch-size", "seed") | {"weights": weights}
    return Job(app, 20, config, (RIVALS / "straightforward_vit", rival))


def advanced_pytorch(folder: Path) -> Job:
    app = ROOT / "examples" / "advanced-pytorch"
    config = declared_config(app) | {
        "dataset": default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist"),
        "num-server-rounds": 10,
        "wandb.mode": "disabled",
    }
    rival = same(config, "dataset", "dirichlet-alpha", "test-fraction", "fraction-train")
    rival |= same(config, "fraction-evaluate", "batch-size", "learning-rate", "momentum", "seed")
    return Job(app, 50, config, (RIVALS / "straightforward_pytorch", rival))


def centralized_to_federated(folder: Path) -> Job:
    app = ROOT / "examples" / "pytorch-from-centralized-to-federated"
    config = declared_config(app) | {
        "dataset": default_dataset("cifar10", "uoft-cs/cifar10"),
        "partitioning": "iid",
        "num-server-rounds": 10,
    }
    rival = same(config, "fraction-train", "fraction-evaluate") | cifar(config)
    return Job(app, 10, config, (RIVALS / "straightforward_pytorch", rival), other=True)


def flowertune_llm(folder: Path) -> Job:
    """SmolLM2-135M on the documentation of Python's standard library, both ready on disk."""
    from datasets import Dataset
    from flowertune_llm import smollm2
    from flowertune_llm.dataset import python_docs

    rows = folder / "python-docs"
    Dataset.from_list(list(python_docs())).to_parquet(rows / "train.parquet")
    app, model = ROOT / "examples" / "flowertune-llm", str(smollm2.model_folder())
    config = declared_config(app, offline=True) | {
        "dataset": str(rows),
        "model.name": model,
        "num-server-rounds": 5,
        "train.evaluate-every-round": 1,
    }
    rival = same(config, "dataset", "test-examples", "seed") | {
        "model": model,
        "lora-r": config["model.lora.peft-lora-r"],
        "lora-alpha": config["model.lora.peft-lora-alpha"],
        "lora-dropout": config["model.lora.peft-lora-dropout"],
        "seq-length": config["train.seq-length"],
        "fraction-train": config["strategy.fraction-train"],
        "max-steps": config["train.training-arguments.max-steps"],
        "batch-size": config["train.training-arguments.per-device-train-batch-size"],
        "learning-rate-max": config["train.learning-rate-max"],
        "learning-rate-min": config["train.learning-rate-min"],
    }
    return Job(app, 20, config, (RIVALS / "straightforward_llm", rival))


def gpu_scaling(folder: Path) -> Job:
    app, clients = ROOT / "examples" / "gpu-scaling", 100
    config = declared_config(app) | {
        "dataset": default_dataset("cifar10", "uoft-cs/cifar10"),
        "num-server-rounds": 10,
    }
    shares = {
        "fraction-train": config["clients-to-train"] / clients,
        "fraction-evaluate": config["clients-to-evaluate"] / clients,
    }
    return Job(app, clients, config, (RIVALS / "straightforward_pytorch", shares | cifar(config)))


def population(folder: Path) -> Job:
    """gpu-scaling with many more clients than nodes."""
    job = gpu_scaling(folder)
    changes = {"population": POPULATION, "examples-per-client": IMAGES, "executor": "inline"}
    return job._replace(clients=POPULATION, nodes=2, config=job.config | changes)


def cifar(config: RunConfig) -> RunConfig:
    """Return the straightforward app's settings for CIFAR-10, split IID."""
    given = same(config, "dataset", "batch-size", "learning-rate", "momentum", "seed")
    return given | {"kind": "cifar10", "dirichlet-alpha": 0.0, "test-fraction": 0.0}


def same(config: RunConfig, *keys: str) -> RunConfig:
    return {key: config[key] for key in keys}


JOBS = {
    "vit-finetune": vit_finetune,
    "advanced-pytorch": advanced_pytorch,
    "pytorch-from-centralized-to-federated": centralized_to_federated,
    "flowertune-llm": flowertune_llm,
    "gpu-scaling": gpu_scaling,
}


PFL_JOBS = {
    name: JOBS[name]
    for name in ("advanced-pytorch", "pytorch-from-centralized-to-federated", "gpu-scaling")
} | {f"gpu-scaling, {POPULATION:,} clients": population}


def command(job: Job, way: str, python: Path, folder: Path) -> list[str]:
    """Return what does a job in a way, and prints a line of JSON for each round.

    Args:
        python: of the environment to run in.
        folder: where the command may write.
    """
    if way in ("example", "straightforward"):
        app, changes = (job.app, job.config) if way == "example" else job.rival
        changes = changes | same(job.config, "num-server-rounds")
        words = [
            "--app",
            app,
            "--num-supernodes",
            job.nodes or job.clients,
            "--backend-config",
            ONE_CPU,
        ]
        words += ["--run-config", as_run_config(changes)]
        return [str(word) for word in (python, RIVALS / "flower.py", *words)]
    file = folder / "asked.json"
    asked = {"job": job.app.name, "clients": job.clients, "config": job.config}
    file.write_text(json.dumps(asked))
    if way == "plain":
        return [str(python), str(RIVALS / "plain.py"), str(file)]
    if way in PFL_WAYS:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        words = [*words, str(PFL_WAYS[way])] if PFL_WAYS[way] > 1 else []
        return [str(python), *words, str(RIVALS / "pfl_research.py"), str(file)]
    return [str(python), str(RIVALS / "flare.py"), str(file), str(folder / "flare")]


def run(words: list[str], job: Job, folder: Path) -> dict[str, Any]:
    """Run a way with empty caches; return its rounds, and the memory of all its processes.

    Raises:
        SystemExit: it failed; ends with its last lines.
    """
    began, rounds, log = time.monotonic(), [], folder / "log.txt"
    own = {name: str(folder / "caches") for name in ("XDG_CACHE_HOME", "HF_HOME")}
    # Ray keeps its sockets there, whose paths must be short.
    own |= {"RAY_TMPDIR": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": str(job.app)}
    with Memory(every=0.5) as memory, log.open("w") as errors:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for line in process.stdout:
            if line.startswith('{"round"'):
                rounds.append(json.loads(line) | {"after": time.monotonic() - began})
            else:
                errors.write(line)
        status = process.wait()
    if status != 0 or not rounds:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()[-3000:]}")
    return {"rounds": rounds, "total_seconds": time.monotonic() - began} | memory.found()


def measure_rounds(job: Job, way: str, folder: Path) -> dict[str, Any]:
    python = Path(sys.executable)
    if way == "other" or way in PFL_WAYS:
        python = kept_environment(*requirements(job, way))
    found = run(command(job, way, python, folder), job, folder)
    later = found["rounds"][1:] or found["rounds"]
    return found | {
        "seconds_a_round": mean(entry["seconds"] for entry in later),
        "bytes_a_round": mean(entry["bytes"] for entry in later),
        "score": found["rounds"][-1]["score"],
    }


def measure_fresh(job: Job, way: str, folder: Path) -> dict[str, Any]:
    """Install into an empty environment without a cache, then run one round."""
    python, began = environment(folder / "environment"), time.monotonic()
    install(python, requirements(job, way), "--quiet", "--no-cache")
    installed = time.monotonic() - began
    os.sync()  # or the run waits for a disk that still writes what was installed
    size = sum(p.lstat().st_size for p in (folder / "environment").rglob("*") if p.is_file())
    job = job._replace(config=job.config | {"num-server-rounds": 1})
    found = run(command(job, way, python, folder), job, folder)
    return {
        "install_seconds": installed,
        "installed_bytes": size,
        "first_result_seconds": found["rounds"][0]["after"],
    }


@cache
def kept_environment(*packages: str) -> Path:
    """Return the Python of an environment with these packages, which lasts until the end."""
    folder = Path(tempfile.mkdtemp(prefix="environment-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    python = environment(folder)
    install(python, list(packages), "--quiet")
    return python


def environment(folder: Path) -> Path:
    """Make an empty virtual environment and return its Python."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, packages: list[str], *options: str) -> None:
    # Compiled, as pip leaves it: what is not may be compiled at each start of each process.
    words = [UV, "pip", "install", "--compile-bytecode", "--python", python, *options, *packages]
    subprocess.run([str(word) for word in words], check=True)


def requirements(job: Job, way: str) -> list[str]:
    """Return what to install for a way, in the versions that the tests of the examples ran with.

    Plain loops need what the example needs without Flower; another framework needs that and
    itself, and some of its versions are its own.
    """
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    app = job.rival[0] if way == "straightforward" else job.app
    packages = load_toml(app / "pyproject.toml")["project"]["dependencies"]
    if way in ("example", "straightforward"):
        return [*packages, *pinned]
    packages = [package for package in packages if not package.startswith("flwr[")]
    if way == "plain":
        return [*packages, *pinned]
    _, framework = PFL if way in PFL_WAYS else FLARE
    return [*packages, framework, *(f"{name}=={version(name)}" for name in ("torch", "numpy"))]


class Part(NamedTuple):
    """A part of the comparison, and the file that it writes."""

    file: str
    jobs: dict[str, Callable[[Path], Job]]
    ways: tuple[str, ...]
    measure: Callable[[Job, str, Path], dict[str, Any]]
    other: tuple[str, str]  # framework: its name and its package


PARTS = {
    "rounds": Part("side-by-side", JOBS, WAYS, measure_rounds, FLARE),
    "fresh": Part("side-by-side-fresh", JOBS, WAYS, measure_fresh, FLARE),
    "pfl": Part("side-by-side-pfl", PFL_JOBS, ("plain", "example", *PFL_WAYS), measure_rounds, PFL),
}


def measure(
    part: Part, names: list[str], ways: list[str], rounds: int | None
) -> dict[str, dict[str, Any]]:
    """Do the jobs in the ways, one after the other; return what was found, by job and way."""
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as data:
        for name in names:
            job = part.jobs[name](Path(data))
            if rounds:
                job = job._replace(config=job.config | {"num-server-rounds": rounds})
            for way in ways:
                if way == "other" and not job.other:
                    continue
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    found = part.measure(job, way, Path(folder))
                runs.setdefault(name, {})[way] = found
                print(f"{name}, {way}: {shown(found)}", flush=True)
    return runs


def shown(found: dict[str, Any]) -> str:
    if "install_seconds" in found:
        first = f"first result after {found['first_result_seconds']:.0f} s"
        return f"installed in {found['install_seconds']:.0f} s, {first}"
    return (
        f"{found['seconds_a_round']:.2f} s a round, {found['peak_bytes'] / 2**30:.2f} GiB, "
        f"{found['bytes_a_round'] / 1e6:.2f} MB a round, score {found['score']:.4f}, "
        f"{found['total_seconds']:.0f} s in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, default="rounds")
    parser.add_argument("--jobs", nargs="+", choices=JOBS | PFL_JOBS)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *PFL_WAYS])
    parser.add_argument("--rounds", type=int, help="for a try; by default each job has its own")
    given = parser.parse_args()
    part = PARTS[given.part]
    jobs, ways = given.jobs or list(part.jobs), given.ways or list(part.ways)
    for option, words, known in (("jobs", jobs, part.jobs), ("ways", ways, part.ways)):
        if not set(words) <= set(known):
            parser.error(f"--part {given.part}: its --{option} are {', '.join(known)}")
    trial = bool(given.rounds) or set(jobs) != set(part.jobs) or set(ways) != set(part.ways)
    with measurement(part.file, seeds=(SEED,), trial=trial) as result:
        name, package = part.other
        result["other"] = {"name": name, "package": package}
        result["jobs"] = measure(part, jobs, ways, given.rounds)


if __name__ == "__main__":
    main()
