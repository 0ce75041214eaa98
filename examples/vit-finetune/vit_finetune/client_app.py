"""The client: computes features of its own images once, then trains and tests the head on them."""

import math

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from vit_finetune import task
from vit_finetune.config import Config
from vit_finetune.kit.flower import identify, partition_id
from vit_finetune.kit.models import load, to_record
from vit_finetune.kit.seeds import derive_seed

app = ClientApp()
app.query()(identify)


@app.query("extract")
def extract(message: Message, context: Context) -> Message:
    """Load the features; reply what was computed, with the features' moments if asked for."""
    config = Config.from_run_config(context.run_config)
    data = load_data(config, context)
    reading = data.reading
    metrics = {
        "images": len(data.training.labels) + len(data.held_out.labels),
        "computed": reading.computed,
        "skipped": reading.skipped,
    }
    notes = ConfigRecord({"notes": reading.notes or ["none"]})
    content = RecordDict({"metrics": MetricRecord(metrics), "notes": notes})
    if message.content["config"]["moments"]:
        moments = task.moments(data.training)
        if config.closed_form:
            moments |= task.class_moments(data.training, data.num_classes)
        content["moments"] = ArrayRecord({name: Array(value) for name, value in moments.items()})
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global head on the local features."""
    config = Config.from_run_config(context.run_config)
    data = load_data(config, context)
    head = load_head(message, config, data)
    server_round = message.content["config"]["server-round"]
    loss = task.train(
        head,
        data.training,
        epochs=config.local_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        label_smoothing=config.label_smoothing,
        seed=derive_seed(config.seed, server_round, partition_id(context)),
    )
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller learning-rate or momentum")
    metrics = {"train_loss": loss, "num-examples": len(data.training.labels)}
    content = {
        "arrays": to_record(head.linear),
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global head on held-out local images."""
    config = Config.from_run_config(context.run_config)
    data = load_data(config, context)
    loss, accuracy = task.evaluate(load_head(message, config, data), data.held_out)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(data.held_out.labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def load_data(config: Config, context: Context) -> task.Partition:
    return task.load_partition(
        config, partition_id(context), int(context.node_config["num-partitions"])
    )


def load_head(message: Message, config: Config, data: task.Partition) -> task.Head:
    """Return the global head from a message, checked against the local data and backbone."""
    arrays = message.content["arrays"].to_torch_state_dict()
    classes, width = arrays["weight"].shape
    if classes != data.num_classes:
        raise RuntimeError(
            f"dataset = '{config.dataset}' has {data.num_classes} classes here, the global head "
            f"{classes}: every site needs the same list of class labels"
        )
    if width != (own := task.load_backbone(config).width):
        raise RuntimeError(f"model.name = '{config.model_name}' gives {own} features, not {width}")
    statistics = message.content["statistics"].to_torch_state_dict()
    standard = task.Statistics(statistics["mean"], statistics["scale"])
    head = task.Head(width, classes, standard, statistics.get("offset"))
    load(head.linear, message.content["arrays"])
    return head
