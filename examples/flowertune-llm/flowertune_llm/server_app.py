"""The server: what clients train, or have, becomes one model, round by round."""

from functools import partial
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from flowertune_llm import profiling
from flowertune_llm.checkpoint import RunState
from flowertune_llm.config import Config
from flowertune_llm.errors import shown
from flowertune_llm.layerwise import LayerwiseFedAvg
from flowertune_llm.outputs import open_run, state_of
from flowertune_llm.strategy import AdapterFedAvg
from flowertune_llm.synthetic import make_sink

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    state = state_of(config, dict(context.run_config))
    initial, evaluate, rounds = ArrayRecord(), None, config.num_server_rounds
    if config.trains:
        from flowertune_llm import central  # seconds to import, and not needed to aggregate

        initial = central.begin(config)
        evaluate = partial(central.evaluate, config)
    elif rounds > 1:
        rounds = 1
        log(INFO, "Nothing is trained: one round is all there is to do")
    with open_run(config, state, rounds) as (save, folder):
        if config.trains and config.evaluate_every_round:
            central.report_data(config)
        strategy = make_strategy(config, initial, state, save, folder)
        strategy.start(
            profiling.watched(grid),
            initial,
            num_rounds=rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate and partial(evaluate, folder),
        )


def make_strategy(
    config: Config, initial: ArrayRecord, state: RunState, save: Any, folder: Path
) -> AdapterFedAvg:
    """Choose how replies travel: an adapter that fits into one slice comes whole."""
    size = sum(len(array.data) for array in initial.values())
    in_slices = config.aggregation_mode == "layerwise" and size > config.slice_megabytes * 2**20
    if config.whole_model or in_slices:
        return LayerwiseFedAvg(config, state, save, folder, partial(make_sink, config))
    return AdapterFedAvg(config, state, save)
