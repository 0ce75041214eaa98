"""The client: receives the global adapter, trains it on its own data, sends the change back."""

import math

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flowertune_llm import models, profiling, task, transport
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition

app = ClientApp(mods=[profiling.mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global adapter on the local examples; the base model stays as it is."""
    config = Config.from_run_config(context.run_config)
    round_config = message.content["config"]
    data = load_partition(config, partition_id(context), int(context.node_config["num-partitions"]))
    received = transport.decode(message.content["arrays"])
    model = models.load_model(config)
    models.set_adapter(model, received)
    seed = derive_seed(config.seed, round_config["server-round"], partition_id(context))
    loss = task.train(model, data, config, round_config["learning-rate"], seed)
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller train.learning-rate-max")
    # The change is small and needs few bits, however large the adapter has become.
    change = {name: value - received[name] for name, value in models.get_adapter(model).items()}
    content = {
        "arrays": transport.encode(change, config.transport_dtype),
        "metrics": MetricRecord({"train_loss": loss, "num-examples": len(data)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Tell which partition this node holds: node ids are random."""
    node = MetricRecord({"partition-id": partition_id(context)})
    return Message(RecordDict({"node": node}), reply_to=message)


def partition_id(context: Context) -> int:
    node = context.node_config
    if not 0 <= int(node.get("partition-id", -1)) < int(node.get("num-partitions", 0)):
        raise RuntimeError(
            f"this SuperNode's node-config {dict(node)} does not say which partition it holds; "
            'start it with --node-config "partition-id=0 num-partitions=2"'
        )
    return int(node["partition-id"])


def derive_seed(*parts: int) -> int:
    """Return an independent seed for each combination of whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
