"""Loads the test set anew for each central evaluation."""

import time
from logging import INFO

from datasets import load_dataset
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader

from straightforward import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    began = time.perf_counter()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal began
        net = task.Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        test_set = load_dataset(context.run_config["dataset"], split="test")
        loader = DataLoader(test_set.with_transform(task.transform), batch_size=32)
        loss, accuracy = task.test(net, loader)
        log(INFO, "Round took %.2f s", time.perf_counter() - began)
        began = time.perf_counter()
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    FedAvg(fraction_train=0.25, fraction_evaluate=0.5).start(
        grid,
        ArrayRecord(task.Net().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
