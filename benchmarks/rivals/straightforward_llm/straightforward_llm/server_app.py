"""The server: loads the model and the held-out data anew for each central evaluation."""

import time
from logging import INFO

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from straightforward_llm import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, began = context.run_config, time.perf_counter()
    torch.manual_seed(config["seed"])

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal began
        model = task.build(config)
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        loss = task.test(model, config)
        log(INFO, "evaluate_metrics_serverapp: loss %.4f", loss)
        log(INFO, "Round took %.2f s", time.perf_counter() - began)
        began = time.perf_counter()
        return MetricRecord({"loss": loss})

    FedAvg(fraction_train=config["fraction-train"], fraction_evaluate=0.0).start(
        grid,
        ArrayRecord(get_peft_model_state_dict(task.build(config))),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
