"""The server: sends the global model out, averages what comes back, tests it, saves it."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from centralized_to_federated import task
from centralized_to_federated.config import Config
from centralized_to_federated.errors import shown
from centralized_to_federated.outputs import open_run, state_of
from centralized_to_federated.strategy import MomentumFedAvg

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    state = state_of(config, dict(context.run_config))
    test_data = task.load(config.dataset, "test")
    network = task.build(config.network, task.num_classes(config.dataset), config.seed)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        network.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.evaluate(network, test_data)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    with open_run(config, state) as run:
        MomentumFedAvg(config, run.state, run.save).start(
            grid,
            ArrayRecord(network.state_dict()),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
