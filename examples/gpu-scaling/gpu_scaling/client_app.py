"""The client: hands its training and testing to an executor, and never touches the device itself.

Nothing here imports PyTorch, so that a client costs little: with the pool, a few MB for a message.
"""

import math
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from gpu_scaling import steps
from gpu_scaling.config import Config
from gpu_scaling.dataset import Source
from gpu_scaling.executors import make  # executors
from gpu_scaling.kit.flower import identify, partition_id
from gpu_scaling.kit.population import play
from gpu_scaling.kit.replies import to_numpy, to_record
from gpu_scaling.kit.seeds import derive_seed

app = ClientApp(mods=[play])
app.query()(identify)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Have the global model trained on the local data."""
    config, source, partition = prepare(context)
    seed = derive_seed(config.seed, message.content["config"]["server-round"], partition)
    arrays = to_numpy(message.content["arrays"])
    settings = config.training
    arrays, loss, count = run(context, steps.train, arrays, source, partition, settings, seed)
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller learning-rate or momentum")
    metrics = MetricRecord({"train_loss": loss, "num-examples": count})
    return Message(RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Have the global model tested on the local test data."""
    config, source, partition = prepare(context)
    arrays = to_numpy(message.content["arrays"])
    loss, accuracy, count = run(context, steps.evaluate, arrays, source, partition, config.threads)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": count}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def prepare(context: Context) -> tuple[Config, Source, int]:
    """Return settings, data (on this machine by now) and partition."""
    config, partition = Config.from_run_config(context.run_config), partition_id(context)
    source = config.source(int(context.node_config["num-partitions"]))
    return config, source.prepare(), partition


def run(context: Context, step: Callable[..., Any], *args: Any) -> Any:
    """Run a step by the executor of the settings; an error names the partition."""
    config, perform = Config.from_run_config(context.run_config), steps.here
    perform = make(config, context.run_id).run  # executors
    try:
        return perform(step, *args)
    except RuntimeError as error:
        raise type(error)(f"partition {partition_id(context)}: {error}") from None
