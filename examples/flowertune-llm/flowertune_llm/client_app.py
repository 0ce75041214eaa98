"""The client: trains on its own data, and sends the change of the adapter."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flowertune_llm import (
    client_files,
    profiler,  # profiler
)
from flowertune_llm.config import Config
from flowertune_llm.kit.flower import identify, partition_id
from flowertune_llm.layerwise.client import register  # layerwise
from flowertune_llm.whole_models import find, train_to_disk  # layerwise

# PyTorch and transformers take seconds to import, and not every message needs them: they are
# imported where they are used.

app = ClientApp(
    mods=[profiler.mod],  # profiler
)
app.query()(identify)
register(app, Config, find, train_to_disk)  # layerwise


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global adapter on the local examples; the base model does not change."""
    from flowertune_llm import training, transport

    round_config, partition = message.content["config"], partition_id(context)
    config = Config.from_run_config(context.run_config).at(partition)
    change, metrics = training.train_adapter(
        config,
        transport.received(config, message.content["arrays"]),
        int(round_config["server-round"]),
        partition,
        int(context.node_config["num-partitions"]),
    )
    arrays = transport.to_send(config, change, round_config, partition)
    content = {"arrays": arrays, "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Delete this client's files of a run that has ended."""
    config = Config.from_run_config(context.run_config)
    run = str(message.content["config"]["run"])
    client_files.forget(client_files.folder_of(config.client_dir, run, partition_id(context)))
    return Message(RecordDict(), reply_to=message)
