"""Our five examples beside what else one could pick, on the same data, seeds and machine.

Each example is a job, and each job is done in up to four ways; benchmarks/README.md says what they
are and how each figure is defined. Two parts, which write a file each:

- rounds: seconds a round, memory, bytes on the wire, and the score after each round.
- fresh: installation into an empty environment, then the time until the first round's result.

Both take the real data under FLOWER_EXAMPLES_DATA where it is there, else that of the Hub. A run of
some jobs or ways only, or with another number of rounds, is a try: it prints and writes nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from common import ONE_CPU, ROOT, SEED, declared_config, default_dataset, measurement
from repository import as_run_config, load_toml
from watch import Memory

HERE = ROOT / "benchmarks"
WAYS = ("plain", "example", "straightforward", "other")
PARTS = {"rounds": "side-by-side", "fresh": "side-by-side-fresh"}
OTHER, OTHER_NAME = "nvflare==2.9.0", "NVIDIA FLARE"
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
    """

    app: Path
    clients: int
    config: RunConfig
    rival: tuple[Path, RunConfig]
    other: bool = False


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
    return Job(app, 20, config, (HERE / "straightforward_vit", rival))


def advanced_pytorch(folder: Path) -> Job:
    app = ROOT / "examples" / "advanced-pytorch"
    config = declared_config(app) | {
        "dataset": default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist"),
        "num-server-rounds": 10,
        "wandb.mode": "disabled",
    }
    rival = same(config, "dataset", "dirichlet-alpha", "test-fraction", "fraction-train")
    rival |= same(config, "fraction-evaluate", "batch-size", "learning-rate", "momentum", "seed")
    return Job(app, 50, config, (HERE / "straightforward_pytorch", rival))


def centralized_to_federated(folder: Path) -> Job:
    app = ROOT / "examples" / "pytorch-from-centralized-to-federated"
    config = declared_config(app) | {
        "dataset": default_dataset("cifar10", "uoft-cs/cifar10"),
        "partitioning": "iid",
        "num-server-rounds": 10,
    }
    rival = same(config, "fraction-train", "fraction-evaluate") | cifar(config)
    return Job(app, 10, config, (HERE / "straightforward_pytorch", rival), other=True)


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
    return Job(app, 20, config, (HERE / "straightforward_llm", rival))


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
    return Job(app, clients, config, (HERE / "straightforward_pytorch", shares | cifar(config)))


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


def ways_of(job: Job, asked: list[str]) -> list[str]:
    return [way for way in WAYS if way in asked and (way != "other" or job.other)]


def command(name: str, job: Job, way: str, python: Path, folder: Path) -> list[str]:
    """Return what does a job in a way, and prints a line of JSON for each round.

    Args:
        python: of the environment to run in.
        folder: where the command may write.
    """
    if way in ("example", "straightforward"):
        app, changes = (job.app, job.config) if way == "example" else job.rival
        changes = changes | same(job.config, "num-server-rounds")
        words = ["--app", app, "--num-supernodes", job.clients, "--backend-config", ONE_CPU]
        words += ["--run-config", as_run_config(changes)]
        return [str(word) for word in (python, HERE / "ways" / "flower.py", *words)]
    file = folder / "asked.json"
    file.write_text(json.dumps({"job": name, "clients": job.clients, "config": job.config}))
    if way == "plain":
        return [str(python), str(HERE / "ways" / "plain.py"), str(file)]
    return [str(python), str(HERE / "ways" / "flare.py"), str(file), str(folder / "flare")]


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


def measure_rounds(name: str, job: Job, way: str, folder: Path) -> dict[str, Any]:
    python = Path(sys.executable)
    if way == "other":
        python = environment(folder / "environment")
        install(python, requirements(job, way), "--quiet")
    found = run(command(name, job, way, python, folder), job, folder)
    later = found["rounds"][1:] or found["rounds"]
    return found | {
        "seconds_a_round": mean(entry["seconds"] for entry in later),
        "bytes_a_round": mean(entry["bytes"] for entry in later),
        "score": found["rounds"][-1]["score"],
    }


def measure_fresh(name: str, job: Job, way: str, folder: Path) -> dict[str, Any]:
    """Install into an empty environment without a cache, then run one round."""
    python, began = environment(folder / "environment"), time.monotonic()
    install(python, requirements(job, way), "--quiet", "--no-cache")
    installed = time.monotonic() - began
    os.sync()  # or the run waits for a disk that still writes what was installed
    size = sum(p.lstat().st_size for p in (folder / "environment").rglob("*") if p.is_file())
    job = job._replace(config=job.config | {"num-server-rounds": 1})
    found = run(command(name, job, way, python, folder), job, folder)
    return {
        "install_seconds": installed,
        "installed_bytes": size,
        "first_result_seconds": found["rounds"][0]["after"],
    }


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

    Plain loops need what the example needs without Flower; FLARE needs that and itself, and some
    of its versions are its own.
    """
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    app = job.rival[0] if way == "straightforward" else job.app
    packages = load_toml(app / "pyproject.toml")["project"]["dependencies"]
    if way in ("example", "straightforward"):
        return [*packages, *pinned]
    packages = [package for package in packages if not package.startswith("flwr[")]
    if way == "plain":
        return [*packages, *pinned]
    return [*packages, OTHER, *(f"{name}=={version(name)}" for name in ("torch", "numpy"))]


def measure(
    part: str, names: list[str], ways: list[str], rounds: int | None
) -> dict[str, dict[str, Any]]:
    """Do the jobs in the ways, one after the other; return what was found, by job and way."""
    one = {"rounds": measure_rounds, "fresh": measure_fresh}[part]
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as data:
        for name in names:
            job = JOBS[name](Path(data))
            if rounds:
                job = job._replace(config=job.config | {"num-server-rounds": rounds})
            for way in ways_of(job, ways):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    found = one(name, job, way, Path(folder))
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
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, help="for a try; by default each job has its own")
    given = parser.parse_args()
    trial = bool(given.rounds) or set(given.jobs) != set(JOBS) or set(given.ways) != set(WAYS)
    with measurement(PARTS[given.part], seeds=(SEED,), trial=trial) as result:
        result["other"] = {"name": OTHER_NAME, "package": OTHER}
        result["jobs"] = measure(given.part, given.jobs, given.ways, given.rounds)


if __name__ == "__main__":
    main()
