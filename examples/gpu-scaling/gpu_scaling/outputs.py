"""The folder of a run: new or resumed, filled round by round, completed with its curves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.common import log

from gpu_scaling.checkpoint import RunFolder, RunState, write_json
from gpu_scaling.config import MAY_CHANGE, Config
from gpu_scaling.plot import draw_curves


@contextmanager
def open_run(
    config: Config, run_config: dict[str, Any]
) -> Iterator[tuple[RunState, Callable[[], None]]]:
    """Yield where the run stands, and what saves it; say at both ends where its files are.

    Raises:
        ValueError: `resume-from` is no run that can be carried on with this config.
    """
    earlier = RunFolder(Path(config.resume_from)) if config.resume_from else None
    state = earlier.load(run_config, MAY_CHANGE) if earlier else RunState(run_config)
    folder = earlier or RunFolder.create(config.output_dir)
    log(INFO, "Outputs: %s", folder.path)
    write_json(folder.config, run_config)
    if earlier:
        log(INFO, "Resuming after round %d of %d", state.round, config.num_server_rounds)

    def save() -> None:
        folder.save(state, state.arrays)

    if state.round >= 0:
        save()  # the other files may be a round behind the checkpoint
    try:
        yield state, save
    except Exception:
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
    last = state.history[-1]["evaluate_metrics_serverapp"]["accuracy"]
    log(INFO, "Centralized accuracy: %.4f, best %.4f", last, state.best_accuracy)
    log(INFO, "Outputs: %s", folder.path)
