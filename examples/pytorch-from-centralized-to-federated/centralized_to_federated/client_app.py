"""The client: receives the global model, trains or tests it on its own data, sends the result."""

import math

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from centralized_to_federated import task
from centralized_to_federated.config import Config
from centralized_to_federated.kit import models
from centralized_to_federated.kit.flower import identify, partition_id

app = ClientApp()
app.query()(identify)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on the local data."""
    config, (data, _), network = prepare(message, context)
    loss = task.train(
        network,
        data,
        epochs=config.local_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        seed=task.derive_seed(
            config.seed, message.content["config"]["server-round"], partition_id(context)
        ),
    )
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller learning-rate or momentum")
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data.labels)})
    content = RecordDict({"arrays": models.to_record(network), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on the local test data."""
    _, (_, data), network = prepare(message, context)
    loss, accuracy = task.evaluate(network, data)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(data.labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def prepare(
    message: Message, context: Context
) -> tuple[Config, tuple[task.Examples, task.Examples], nn.Module]:
    """Return the settings, this client's training and test data, and the global model."""
    config = Config.from_run_config(context.run_config)
    count = int(context.node_config["num-partitions"])
    data = task.load_partition(config.dataset, partition_id(context), count, *config.how)
    network = task.build(config.network, task.num_classes(config.dataset), config.seed)
    models.load(network, message.content["arrays"])
    return config, data, network
