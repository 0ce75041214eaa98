"""The folder of a run: new or resumed, filled round by round, completed with its curves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.common import log

from gpu_scaling.checkpoint import Arrays, RunFolder, RunState, write_json
from gpu_scaling.config import MAY_CHANGE, Config
from gpu_scaling.plot import draw_curves


@dataclass
class Run:
    """Where a run stands, and where it is kept.

    Args:
        state: after the last whole round.
        folder: of its files.
        model: what goes into model.safetensors.
    """

    state: RunState
    folder: RunFolder
    model: Callable[[RunState], Arrays]

    def save(self) -> None:
        """Write the round that has just ended."""
        self.folder.save(self.state, self.model(self.state))


def global_model(state: RunState) -> Arrays:
    return state.arrays


def state_of(config: Config, run_config: dict[str, Any]) -> RunState:
    """Return where the run stands that begins or is resumed; nothing is written yet.

    Raises:
        ValueError: `resume-from` is no run that can be carried on with this config.
    """
    if config.resume_from:
        return RunFolder(Path(config.resume_from)).load(run_config, MAY_CHANGE)
    return RunState(run_config)


@contextmanager
def open_run(
    config: Config, state: RunState, model: Callable[[RunState], Arrays] = global_model
) -> Iterator[Run]:
    """Yield the run that begins or is resumed; say at both ends where its files are."""
    resumed = Path(config.resume_from) if config.resume_from else None
    folder = RunFolder(resumed) if resumed else RunFolder.create(config.output_dir)
    log(INFO, "Outputs: %s", folder.path)
    write_json(folder.config, state.config)
    if resumed:
        log(INFO, "Resuming after round %d of %d", state.round, config.num_server_rounds)
    run = Run(state, folder, model)
    if state.round >= 0:
        run.save()  # the other files may be a round behind the checkpoint
    try:
        yield run
    except Exception:
        if folder.saved_round >= 0:
            message = "Stopped; round %d is safe: resume-from='%s'"
            log(ERROR, message, folder.saved_round, folder.path)
        raise
    finally:
        if state.history:
            draw_curves(state.history, folder.curves)
    log(INFO, "")
    log(INFO, "Results: %s", folder.results)
    log(INFO, "Curves:  %s", folder.curves)
    log(INFO, "Model:   %s (round %d)", folder.model, state.best_round)
    tested = [e["evaluate_metrics_serverapp"] for e in state.history]
    last = [metrics["accuracy"] for metrics in tested if metrics][-1]
    log(INFO, "Centralized accuracy: %.4f, best %.4f", last, state.best_accuracy)
    log(INFO, "Outputs: %s", folder.path)
