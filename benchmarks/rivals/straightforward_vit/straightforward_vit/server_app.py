"""The server: loads the test set anew for each central evaluation."""

import time
from logging import INFO

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from straightforward_vit import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, began = context.run_config, time.perf_counter()
    torch.manual_seed(config["seed"])

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal began
        model = task.build(config)
        model.heads.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.test(model, task.load_test(config))
        log(INFO, "evaluate_metrics_serverapp: accuracy %.4f, loss %.4f", accuracy, loss)
        log(INFO, "Round took %.2f s", time.perf_counter() - began)
        began = time.perf_counter()
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    strategy = FedAvg(
        fraction_train=config["fraction-train"], fraction_evaluate=config["fraction-evaluate"]
    )
    strategy.start(
        grid,
        ArrayRecord(task.build(config).heads.state_dict()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
