"""The folder of a run: new or resumed, filled round by round, with adapters in PEFT's format."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.common import log

from flowertune_llm import profiling
from flowertune_llm.checkpoint import RunFolder, RunState, write_json
from flowertune_llm.config import MAY_CHANGE, Config
from flowertune_llm.plot import draw_curves
from flowertune_llm.tracking import tracker


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
    config: Config, state: RunState, rounds: int
) -> Iterator[tuple[Callable[[], None], Path]]:
    """Yield what saves the run, and its folder; say at both ends where that is."""
    resumed = Path(config.resume_from) if config.resume_from else None
    folder = RunFolder(resumed) if resumed else RunFolder.create(config.output_dir)
    log(INFO, "Outputs: %s", folder.path)
    write_json(folder.config, state.config)
    if resumed:
        log(INFO, "Resuming after round %d of %d", state.round, rounds)

    def save_files() -> None:
        folder.save(state, state.arrays)
        last = state.round == rounds
        if not state.round or config.whole_model:
            return
        from flowertune_llm.models import save_adapter  # seconds to import

        if last or state.round % config.save_every_round == 0:
            save_adapter(state.arrays, config, folder.path / f"peft_{state.round}")

    if state.round >= 0:
        save_files()  # the other files may be a round behind the checkpoint
    try:
        with (
            tracker(config, folder, state.config) as track,
            profiling.profiled(config.profile_enabled, folder.path, state.round) as end_round,
        ):

            def save() -> None:
                with profiling.task("checkpoint"):
                    save_files()
                track(state.history[-1])
                end_round(state.round)

            yield save, folder.path
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
    kind = ("Model:  ", "model") if config.whole_model else ("Adapter:", "peft")
    if (trained := folder.path / f"{kind[1]}_{state.round}").is_dir():
        log(INFO, "%s %s", kind[0], trained)
    report_losses(state.history)
    log(INFO, "Outputs: %s", folder.path)


def report_losses(history: list[dict[str, Any]]) -> None:
    tested = [e for e in history if e["evaluate_metrics_serverapp"]]
    if tested:
        first, last = (tested[i]["evaluate_metrics_serverapp"]["loss"] for i in (0, -1))
        log(INFO, "Centralized loss: %.4f before training, %.4f now", first, last)
