"""The client: receives the global model, trains or tests it on its own data, sends the result."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from federated_app import parts, task
from federated_app.config import Config
from federated_app.kit import models
from federated_app.kit.flower import identify, partition_id
from federated_app.kit.seeds import derive_seed

app = ClientApp()
app.query()(identify)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on the local data."""
    config, (data, test_data), network = prepare(message, context)
    server_round = message.content["config"]["server-round"]
    seed = derive_seed(config.seed, server_round, partition_id(context))
    network, figures = task.train(config, seed, network, data, test_data)
    metrics = {f"train_{name}": value for name, value in figures.items()}
    metrics = MetricRecord(metrics | {"num-examples": parts.size(data)})
    content = RecordDict({"arrays": models.to_record(network), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on the local test data."""
    config, (_, data), network = prepare(message, context)
    figures = task.evaluate(config, network, data)
    metrics = {f"eval_{name}": value for name, value in figures.items()}
    metrics = MetricRecord(metrics | {"num-examples": parts.size(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def prepare(message: Message, context: Context) -> tuple[Config, parts.Both, nn.Module]:
    """Return the settings, this client's training and test data, and the global model."""
    config = Config.from_run_config(context.run_config)
    count = int(context.node_config["num-partitions"])
    data = parts.load(config, partition_id(context), count)
    network = task.build(config)
    models.load(network, message.content["arrays"])
    return config, data, network
