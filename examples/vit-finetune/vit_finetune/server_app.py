"""The server: reads the config, starts or resumes the run, saves every round."""

from logging import ERROR, INFO, WARNING
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from vit_finetune import dataset, task
from vit_finetune.checkpoint import Arrays, RunFolder, RunState, write_json
from vit_finetune.config import MAY_CHANGE, Config
from vit_finetune.errors import shown
from vit_finetune.plot import draw_curves
from vit_finetune.strategy import HeadFedAvg

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run_config = dict(context.run_config)
    earlier = RunFolder(Path(config.resume_from)) if config.resume_from else None
    state = earlier.load(run_config, MAY_CHANGE) if earlier else RunState(run_config)
    task.check(config)  # before anything is written
    folder = earlier or RunFolder.create(config.output_dir)
    log(INFO, "Outputs: %s", folder.path)
    write_json(folder.config, run_config)
    if earlier:
        log(INFO, "Resuming after round %d of %d", state.round, config.num_server_rounds)
    backbone = task.load_backbone(config)
    log(INFO, "Backbone: %s, weights %s, %s", backbone.name, backbone.weights, backbone.precision)
    test_data = load_test(config)
    num_classes = dataset.load_test(config.dataset).num_classes

    def load_head() -> task.Head:
        """Return the global head as it stands, at first zero and without statistics."""
        nothing = torch.zeros(backbone.width)
        known = {
            name: torch.from_numpy(state.server[name]) for name in ("mean", "scale") if state.server
        }
        statistics = task.Statistics(**known) if known else task.Statistics(nothing, nothing)
        offset = torch.from_numpy(state.server["offset"]) if "offset" in state.server else None
        return task.Head(backbone.width, num_classes, statistics, offset)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        head = load_head()
        head.linear.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.evaluate(head, test_data)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    def save_round() -> None:
        folder.save(state, whole_head(state))

    if state.round >= 0:
        save_round()  # the other files may be a round behind the checkpoint
    try:
        HeadFedAvg(config, state, save_round).start(
            grid,
            ArrayRecord(load_head().linear.state_dict()),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
    except Exception:
        message = "Stopped; round %d is safe: resume-from='%s'"
        log(ERROR, message, folder.saved_round, folder.path)
        raise
    finally:
        if state.history:
            draw_curves(state.history, folder.curves)
    log(INFO, "")
    log(INFO, "Results: %s", folder.results)
    log(INFO, "Curves:  %s", folder.curves)
    log(INFO, "Head:    %s (round %d)", folder.model, state.best_round)
    last = state.history[-1]["evaluate_metrics_serverapp"].get("accuracy", float("nan"))
    log(INFO, "Centralized accuracy: %.4f, best %.4f", last, state.best_accuracy)
    log(INFO, "Outputs: %s", folder.path)


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
