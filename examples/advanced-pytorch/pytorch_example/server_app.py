"""The server: what is trained, by which strategy, and how it is tested."""

import math
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from pytorch_example import task
from pytorch_example.config import Config
from pytorch_example.heads import WithPersonalHeads
from pytorch_example.kit import models
from pytorch_example.kit.clients import Clients, Draw
from pytorch_example.kit.flower import shown
from pytorch_example.kit.loop import Loop
from pytorch_example.kit.run import Run
from pytorch_example.privacy import WithPrivacy, spent
from pytorch_example.strategy import CustomFedAvg
from pytorch_example.tracking import tracker

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    if config.private:
        # Clipping bounds updates already; a median would let one client affect another's part.
        config = replace(config, max_update_ratio=math.inf)
    run = Run(config, context.run_config)
    task.check(config.dataset, config.test_split)  # before anything is written
    test_data = task.load_test(config.dataset, config.test_split)
    torch.manual_seed(config.seed)
    model = task.Net(task.num_classes(config.dataset))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models.load(model, arrays)
        model.to(task.device())
        [(loss, accuracy)] = task.evaluate(model, test_data, model.head)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    buffers = models.buffers(model)
    strategy: Strategy = CustomFedAvg(
        config.learning_rate,
        config.learning_rate_decay,
        config.server_momentum,
        config.server_learning_rate,
    )
    if config.private:
        seed = config.seed if config.dp_repeatable_noise else None
        noise, norm = config.dp_noise_multiplier, config.dp_clipping_norm
        strategy = WithPrivacy(strategy, noise, norm, seed, buffers)

    def check(num_partitions: int) -> None:
        sizes = (config.dirichlet_alpha, config.min_partition_size, config.seed)
        task.split(config.dataset, num_partitions, *sizes, config.test_split).check()

    clients = Clients(grid, config, check=check)
    strategy = WithPersonalHeads(strategy, clients.partitions.__getitem__)
    draw = Draw(config.fraction_train, config.fraction_evaluate, config.min_replies, config.seed)

    with run, tracker(config, run) as log_round:
        Loop(
            strategy,
            run,
            draw,
            buffers=buffers,
            clients=clients,
            remarks=lambda server_round, each: spent(config, server_round),
            on_round_end=log_round,
        ).start(
            grid,
            models.to_record(model),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
