"""The server: reads the config, starts or resumes the run, has the global model tested."""

import os
from logging import INFO

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from gpu_scaling import executors, steps
from gpu_scaling.config import Config
from gpu_scaling.errors import shown
from gpu_scaling.outputs import open_run, state_of
from gpu_scaling.replies import to_numpy, to_record
from gpu_scaling.strategy import ScalingFedAvg

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    state = state_of(config, dict(context.run_config))
    source = config.source().prepare()
    executor = executors.make(config.executor, context.run_id, config.options, owner=os.getpid())
    initial = executor.run(steps.initial, source.num_classes, config.seed)
    told = ""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal told
        found = executor.run(steps.evaluate, to_numpy(arrays), source, None, config.threads)
        if executor.note != told:
            told = executor.note
            log(INFO, "Pool: %s", told)
        return MetricRecord({"accuracy": found[1], "loss": found[0]})

    with open_run(config, state) as run:
        ScalingFedAvg(config, run.state, run.save).start(
            grid,
            to_record(initial),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
