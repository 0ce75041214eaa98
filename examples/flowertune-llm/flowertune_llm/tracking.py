"""Weights & Biases, if wanted; not imported when disabled."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import INFO
from pathlib import Path

from flwr.common import log

from flowertune_llm.config import Config
from flowertune_llm.kit.files import write_whole
from flowertune_llm.kit.loop import Entry
from flowertune_llm.kit.run import Run


@contextmanager
def tracker(config: Config, run: Run) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that logs one entry of results.json."""
    if config.wandb_mode == "disabled":
        yield lambda entry: None
        return

    import wandb  # imported here: it takes a second, and is not always wanted

    name = "-".join(run.folder.parts[-2:])
    online = config.wandb_mode == "online"
    with wandb.init(
        project=config.wandb_project,
        name=name,
        id=id_of(run.folder),
        dir=run.folder,
        config=run.run_config,
        mode=config.wandb_mode,
        resume="allow" if online else None,
        settings=wandb.Settings(silent=True),
    ) as tracked:
        later = f"to upload it later: wandb sync {tracked.dir.removesuffix('/files')}"
        log(INFO, "W&B: %s", tracked.url if online else later)
        yield lambda entry: tracked.log(named_metrics(entry), step=entry["round"])


def id_of(folder: Path) -> str:
    """Return a run's id at W&B: random, and kept in the run's folder for a resume."""
    path = folder / "wandb" / "id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, secrets.token_hex(8).encode())
    return path.read_text()


def named_metrics(entry: Entry) -> dict[str, float]:
    """Return a round's metrics under names that say who measured them."""
    central = {f"centralized_{k}": v for k, v in entry["evaluate_metrics_serverapp"].items()}
    return entry["train_metrics"] | central | entry["traffic"]
