"""The server: sends the global model out, averages what comes back, tests it, saves it."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

from centralized_to_federated import task
from centralized_to_federated.config import Config
from centralized_to_federated.kit import models
from centralized_to_federated.kit.clients import Clients, Draw
from centralized_to_federated.kit.flower import shown
from centralized_to_federated.kit.loop import Loop
from centralized_to_federated.kit.run import Run

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run = Run(config, context.run_config)
    task.check(config.dataset, config.test_split)  # before anything is written
    test_data = task.load(config.dataset, "test", config.test_split)
    network = task.build(config.network, task.num_classes(config.dataset), config.seed)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models.load(network, arrays)
        loss, accuracy = task.evaluate(network, test_data)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    strategy = FedAvgM(server_momentum=config.server_momentum)
    strategy.server_opt = True  # same arithmetic with and without momentum

    def check(num_partitions: int) -> None:
        for parts in task.split(config.dataset, num_partitions, *config.how):
            parts.check()

    draw = Draw(config.fraction_train, config.fraction_evaluate, config.min_replies, config.seed)
    with run:
        clients = Clients(grid, config, check=check)
        Loop(strategy, run, draw, buffers=models.buffers(network), clients=clients).start(
            grid,
            models.to_record(network),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
