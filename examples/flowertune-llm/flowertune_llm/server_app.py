"""The server: sends the global adapter out, averages what comes back, tests it, saves it."""

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flowertune_llm import profiler  # profiler
from flowertune_llm.central import Adapters
from flowertune_llm.config import Config
from flowertune_llm.encoding import LEVELS
from flowertune_llm.kit.clients import Clients, Draw
from flowertune_llm.kit.flower import shown
from flowertune_llm.kit.loop import Entry, Loop
from flowertune_llm.kit.run import Run
from flowertune_llm.layerwise.choice import choose  # layerwise
from flowertune_llm.strategy import DiLoCo
from flowertune_llm.tracking import tracker
from flowertune_llm.transport import Wire, have_forgotten
from flowertune_llm.whole_models import WholeModels  # layerwise

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config).at(0)
    run = Run(config, context.run_config)
    strategy = FedAvg()  # or any other of Flower's
    if config.outer_step:
        strategy = DiLoCo(config.outer_learning_rate, config.outer_momentum)
    draw = RoundDraw(config.fraction_train, 0.0, config.min_replies, config.seed)
    model = Adapters(config, run)
    if config.whole_model:  # layerwise
        model = WholeModels(config, run)  # layerwise
    initial = model.prepare()
    aggregation = choose(config, strategy, initial)  # layerwise
    with (
        run,
        tracker(config, run) as track,
        profiler.profiled(config.profile_enabled, run.folder, run.round) as profile,  # profiler
    ):
        grid = profiler.watched(grid)  # profiler
        run.save = profiler.task("checkpoint")(run.save)  # profiler
        strategy.aggregate_train = profiler.task("aggregate")(strategy.aggregate_train)  # profiler
        wire = Wire(grid, run, initial)
        clients = Clients(wire, config)
        layers = aggregation.layers(run, clients, wire.traffic)  # layerwise

        def remarks(server_round: int, figures: list[Entry]) -> Entry:
            return wire.remarks(server_round, figures) | model.remarks()

        def end_round(entry: Entry) -> None:
            model.save()
            track(entry)
            profile(run.round)  # profiler

        model.begin()
        Loop(
            strategy,
            run,
            draw,
            clients=clients,
            train=layers and layers.train,  # layerwise
            remarks=remarks,
            on_round_end=end_round,
        ).start(
            wire,
            initial,
            num_rounds=model.rounds,
            timeout=config.round_timeout,
            evaluate_fn=model.evaluate,
        )
        clients_keep = config.transport_dtype in LEVELS
        clients_keep |= bool(layers) and config.trains  # layerwise
        if clients_keep:
            have_forgotten(clients, run)


class RoundDraw(Draw):
    """The draw of a run whose clients train and do not test."""

    def generator(self, server_round: int, kind: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, server_round))
