"""The server: what is trained, by which strategy, and how it is tested, in a worker of the pool."""

import os  # executors
from logging import INFO, WARNING

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

from gpu_scaling import steps
from gpu_scaling.config import Config
from gpu_scaling.executors import make  # executors
from gpu_scaling.kit.clients import Clients, Draw
from gpu_scaling.kit.flower import shown
from gpu_scaling.kit.loop import Loop
from gpu_scaling.kit.replies import to_numpy, to_record
from gpu_scaling.kit.run import Run

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run = Run(config, context.run_config)
    source = config.source(config.population).prepare()  # before anything is written
    for remark in source.remarks:
        log(WARNING, "%s", remark)
    if source.drawn:
        text = "Each client draws %d examples by its own seed: clients share them"
        log(INFO, text, config.examples_per_client)
    perform = steps.here
    executor = make(config, context.run_id, owner=os.getpid())  # executors
    perform = executor.run  # executors
    initial = perform(steps.initial, source.num_classes, config.seed)
    buffers = perform(steps.buffers, source.num_classes)
    told = [""]  # executors

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss, accuracy, _ = perform(steps.evaluate, to_numpy(arrays), source, None, config.threads)
        if executor.note != told[-1]:  # executors
            told.append(executor.note)  # executors
            log(INFO, "Pool: %s", executor.note)  # executors
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    strategy = FedAvgM(server_momentum=config.server_momentum)
    strategy.server_opt = True  # the same arithmetic whatever the momentum
    clients = Clients(
        grid,
        config,
        {"min-clients": config.min_clients},
        at_once=config.messages_at_once,
        check=lambda num_partitions: config.source(num_partitions).prepare(),
        population=config.population,
    )
    draw = Draw(
        config.clients_to_train, config.clients_to_evaluate, config.min_replies, config.seed
    )
    with run:
        Loop(strategy, run, draw, buffers=buffers, clients=clients).start(
            grid,
            to_record(initial),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
