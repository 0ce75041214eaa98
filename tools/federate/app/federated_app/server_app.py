"""The server: sends the global model out, averages what comes back, tests it, saves it."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from federated_app import parts, task
from federated_app.config import Config
from federated_app.kit import models
from federated_app.kit.clients import Clients, Draw
from federated_app.kit.flower import shown
from federated_app.kit.loop import Loop
from federated_app.kit.run import Run

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run = Run(config, context.run_config)
    _, test_data = task.data(config)
    network = task.build(config)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models.load(network, arrays)
        return MetricRecord(task.evaluate(config, network, test_data))

    def check(num_partitions: int) -> None:
        for each in parts.split(config, num_partitions):
            each.check()

    draw = Draw(config.fraction_train, config.fraction_evaluate, config.min_replies, config.seed)
    with run:
        clients = Clients(grid, config, check=check)
        Loop(FedAvg(), run, draw, buffers=models.buffers(network), clients=clients).start(
            grid,
            models.to_record(network),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
