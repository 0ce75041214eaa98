"""The server: reads the config, starts or resumes the run, saves every round."""

from logging import INFO, WARNING

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from vit_finetune import dataset, task
from vit_finetune.checkpoint import Arrays, RunState
from vit_finetune.config import Config
from vit_finetune.errors import shown
from vit_finetune.outputs import open_run, state_of
from vit_finetune.strategy import HeadFedAvg

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    state = state_of(config, dict(context.run_config))
    task.check(config)  # before anything is written
    num_classes = dataset.load_test(config.dataset).num_classes
    with open_run(config, state, whole_head) as run:
        backbone = task.load_backbone(config)
        facts = (backbone.name, backbone.weights, backbone.precision)
        log(INFO, "Backbone: %s, weights %s, %s", *facts)
        test_data = load_test(config)

        def load_head() -> task.Head:
            return head_of(run.state, backbone.width, num_classes)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            head = load_head()
            head.linear.load_state_dict(arrays.to_torch_state_dict())
            loss, accuracy = task.evaluate(head, test_data)
            return MetricRecord({"accuracy": accuracy, "loss": loss})

        HeadFedAvg(config, run.state, run.save).start(
            grid,
            ArrayRecord(load_head().linear.state_dict()),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )


def head_of(state: RunState, width: int, num_classes: int) -> task.Head:
    """Return a head that standardises as the server knows to by now, at first not at all."""
    nothing = torch.zeros(width)
    known = {
        name: torch.from_numpy(state.server[name]) for name in ("mean", "scale") if state.server
    }
    statistics = task.Statistics(**known) if known else task.Statistics(nothing, nothing)
    offset = torch.from_numpy(state.server["offset"]) if "offset" in state.server else None
    return task.Head(width, num_classes, statistics, offset)


def load_test(config: Config) -> task.Source:
    """Load the central test set; say how long its features took, and which images were skipped."""
    source, report = task.load_test(config)
    if report.computed:
        speed = report.computed / report.seconds
        log(INFO, "Features of %d test images computed, %.0f images/s", report.computed, speed)
    for note in report.notes:
        log(WARNING, "Test set: %s", note)
    return source


def whole_head(state: RunState) -> Arrays:
    """Return the head as torchvision names it, for features as they come from the backbone."""
    weight = state.arrays["weight"]
    bias = state.server.get("offset", np.zeros(len(weight), np.float32))
    if "scale" in state.server:
        weight = weight * state.server["scale"]
        bias = bias - weight @ state.server["mean"]
    return {"heads.head.weight": weight, "heads.head.bias": bias}
