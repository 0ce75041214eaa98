"""The server: what is trained, by which strategy, and how it is tested."""

from logging import INFO, WARNING

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

from vit_finetune import dataset, task
from vit_finetune.config import Config
from vit_finetune.extraction import WithFeatures
from vit_finetune.kit.clients import Clients, Draw
from vit_finetune.kit.flower import shown
from vit_finetune.kit.images import UNREADABLE
from vit_finetune.kit.loop import Loop
from vit_finetune.kit.models import load, to_record
from vit_finetune.kit.replies import Arrays
from vit_finetune.kit.run import Run

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run = Run(
        *(config, context.run_config),
        lambda arrays: whole_head(arrays, strategy.statistics, backbone.head),
    )
    task.check(config)  # before anything is written
    backbone = task.load_backbone(config)
    num_classes = dataset.load_test(config.dataset, config.test_split).num_classes

    momentum = FedAvgM(
        server_learning_rate=config.server_learning_rate, server_momentum=config.server_momentum
    )
    momentum.server_opt = True  # same arithmetic with and without momentum
    clients = Clients(grid, config, check=lambda count: task.check_split(config, count))
    evaluated = config.fraction_evaluate if config.test_fraction > 0 else 0.0
    draw = Draw(config.fraction_train, evaluated, config.min_replies, config.seed)
    strategy = WithFeatures(momentum, config, clients, draw, num_classes, backbone.width)
    loop = Loop(
        strategy,
        run,
        draw,
        clients=clients,
        prepare=strategy.prepare,
        remarks=strategy.remarks,
    )
    with run:
        log(INFO, "Backbone: %s", backbone)
        clients.connected()  # raises an error for too many clients, before features are computed
        if config.feature_cache and (others := task.load_cache(config).others()):
            text = "Features are computed anew: those in %s have other settings, weights or code"
            log(INFO, text, ", ".join(map(str, others)))
        test_data = load_test(config)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            head = head_of(strategy.statistics, backbone.width, num_classes)
            load(head.linear, arrays)
            loss, accuracy = task.evaluate(head, test_data)
            return MetricRecord({"accuracy": accuracy, "loss": loss})

        head = head_of({}, backbone.width, num_classes)
        initial = to_record(head.linear)
        if config.closed_form and run.round < 0:
            initial = strategy.closed_form()
        loop.start(
            grid,
            initial,
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )


def head_of(statistics: Arrays, width: int, num_classes: int) -> task.Head:
    """Return a head that standardises by the statistics so far, at first not at all."""
    known = {name: torch.from_numpy(value) for name, value in statistics.items()}
    nothing = torch.zeros(width)
    standard = task.Statistics(known.get("mean", nothing), known.get("scale", nothing))
    return task.Head(width, num_classes, standard, known.get("offset"))


def load_test(config: Config) -> task.Features:
    """Load the central test set; log the time for its features, and the skipped images."""
    data, reading = task.load_test(config)
    if reading.skipped > UNREADABLE * (count := reading.skipped + len(data.labels)):
        raise RuntimeError(
            f"dataset = '{config.dataset}': {reading.skipped} of {count} images of its test split "
            f"cannot be read, first {reading.notes[-reading.skipped]}"
        )
    if reading.computed:
        speed = reading.computed / reading.seconds
        log(INFO, "Features of %d test images computed, %.0f images/s", reading.computed, speed)
    for note in reading.notes:
        log(WARNING, "Test set: %s", note)
    if better := task.better_normalization(config):
        text = "model.normalization = '%s' suits model.weights better: the nearest to a test image "
        log(WARNING, text + "is of the same class for %.2f of them, with '%s' for %.2f", *better)
    return data


def whole_head(arrays: Arrays, statistics: Arrays, name: str) -> Arrays:
    """Return the head under the model's names, for features that are not standardised."""
    name = name or "head"
    weight = arrays["weight"]
    bias = statistics.get("offset", np.zeros(len(weight), np.float32))
    if "scale" in statistics:
        weight = weight * statistics["scale"]
        bias = bias - weight @ statistics["mean"]
    return {f"{name}.weight": weight, f"{name}.bias": bias}
