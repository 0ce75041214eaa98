"""The client: trains on its own data, and sends what changed."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flowertune_llm import profiler  # profiler
from flowertune_llm.config import Config
from flowertune_llm.kit.flower import identify, partition_id
from flowertune_llm.layerwise.client import register  # layerwise
from flowertune_llm.whole_models import find, train_to_disk  # layerwise

# PyTorch and transformers take seconds to import, and not every message needs them: what trains is
# imported where it is used.

app = ClientApp(
    mods=[profiler.mod],  # profiler
)
app.query()(identify)
register(app, Config, find, train_to_disk)  # layerwise


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global adapter on the local examples; the base model stays as it is."""
    from flowertune_llm import training, transport

    partition = partition_id(context)
    config = Config.from_run_config(context.run_config).at(partition)
    change, report = training.train_adapter(
        config,
        transport.decode(message.content["arrays"]),
        int(message.content["config"]["server-round"]),
        partition,
        int(context.node_config["num-partitions"]),
    )
    content = {
        "arrays": transport.encode(change, config.transport_dtype),
        "metrics": MetricRecord(report),
    }
    return Message(RecordDict(content), reply_to=message)
