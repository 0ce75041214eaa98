"""Weights & Biases: online with a login, offline without, not even imported when disabled."""

import netrc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import INFO, WARNING
from typing import Any
from urllib.parse import urlsplit

from flwr.common import log

from pytorch_example.checkpoint import RunFolder, RunState
from pytorch_example.config import Config

LogRound = Callable[[dict[str, Any]], None]


def has_login() -> bool:
    """Look where `wandb login` leaves its key, without asking the user or the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def tracker(config: Config, folder: RunFolder, state: RunState) -> Iterator[LogRound]:
    """Yield a function that logs one entry of results.json."""
    mode = config.wandb_mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")
    if mode == "disabled":
        yield lambda entry: None
        return

    import wandb  # only here: it takes a second, and not everyone wants it

    options = {
        "project": config.wandb_project,
        "name": "-".join(folder.path.parts[-2:]),
        "id": state.run_id,
        "dir": folder.path,
        "config": state.config,
        "settings": wandb.Settings(silent=True, init_timeout=30),
    }
    try:
        run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, **options)
    except wandb.errors.CommError as error:
        if config.wandb_mode == "online":
            raise
        log(WARNING, "W&B cannot be reached, carrying on offline: %s", error)
        mode = "offline"
        run = wandb.init(mode=mode, **options)
    with run:
        later = f"offline; later: wandb sync {run.dir.removesuffix('/files')}"
        log(INFO, "W&B: %s", run.url if mode == "online" else later)
        yield lambda entry: run.log(named_metrics(entry), step=entry["round"])
        if folder.model.is_file():
            run.log_artifact(folder.model, name=f"model-{state.run_id}", type="model")


def named_metrics(entry: dict[str, Any]) -> dict[str, float]:
    """Rename the metrics of a round so that a chart says who measured them."""
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
