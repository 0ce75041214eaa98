"""Weights & Biases: online with a login, offline without; not imported when disabled."""

import netrc
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import INFO
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from flwr.common import log

from pytorch_example.config import Config
from pytorch_example.kit.files import write_whole
from pytorch_example.kit.run import MODEL, Run

LogRound = Callable[[dict[str, Any]], None]


def server() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def has_login() -> bool:
    """Tell whether `wandb login` has left a key, without asking the user or the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server().hostname) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def is_reachable() -> bool:
    """Try to connect, for 3 s: W&B itself would wait for minutes."""
    if getproxies().get(server().scheme):
        return True
    port = server().port or (443 if server().scheme == "https" else 80)
    try:
        socket.create_connection((server().hostname, port), timeout=3).close()
    except OSError:
        return False
    return True


def choose_mode(config: Config) -> str:
    """Return "online", "offline" or "disabled", and log the choice of "auto"."""
    if config.wandb_mode != "auto":
        return config.wandb_mode
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if not has_login():
        log(INFO, "W&B: no login found (`wandb login`), so offline")
        return "offline"
    if not is_reachable():
        log(INFO, "W&B: %s cannot be reached, so offline", server().hostname)
        return "offline"
    return "online"


@contextmanager
def tracker(config: Config, run: Run) -> Iterator[LogRound]:
    """Yield a function that logs one entry of results.json."""
    mode = choose_mode(config)
    if mode == "disabled":
        yield lambda entry: None
        return

    import wandb  # imported here: it takes a second, and is not always wanted

    name = "-".join(run.folder.parts[-2:])
    tracked = wandb.init(
        project=config.wandb_project,
        name=name,
        id=id_of(run.folder),
        dir=run.folder,
        config=run.run_config,
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(silent=True),
    )
    with tracked:
        later = f"to upload it later: wandb sync {tracked.dir.removesuffix('/files')}"
        log(INFO, "W&B: %s", tracked.url if mode == "online" else later)
        yield lambda entry: tracked.log(named_metrics(entry), step=entry["round"])
        if (model := run.folder / MODEL).is_file():
            tracked.log_artifact(model, name=f"model-{tracked.id}", type="model")


def id_of(folder: Path) -> str:
    """Return a run's id at W&B: random, and kept in the run's folder for a resume."""
    path = folder / "wandb" / "id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, secrets.token_hex(8).encode())
    return path.read_text()


def named_metrics(entry: dict[str, Any]) -> dict[str, float]:
    """Return a round's metrics under names that say who measured them."""
    federated, central = entry["evaluate_metrics_clientapp"], entry["evaluate_metrics_serverapp"]
    names = {
        "eval_loss": "federated_evaluate_loss",
        "eval_acc": "federated_evaluate_accuracy",
        "personal_eval_loss": "federated_evaluate_personal_loss",
        "personal_eval_acc": "federated_evaluate_personal_accuracy",
    }
    return (
        entry["train_metrics"]
        | {names.get(name, name): value for name, value in federated.items()}
        | {f"centralized_{name}": value for name, value in central.items()}
    )
