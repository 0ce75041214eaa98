"""The client: trains and tests on its own partition, and keeps a personal head in its state."""

import math
from copy import deepcopy

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from pytorch_example import task
from pytorch_example.config import Config
from pytorch_example.heads import PERSONAL_HEAD, carry_head
from pytorch_example.kit import models
from pytorch_example.kit.flower import identify, partition_id
from pytorch_example.kit.seeds import derive_seed
from pytorch_example.privacy import clip_update

app = ClientApp()
app.query()(identify)


@app.train(mods=[carry_head, clip_update])
def train(message: Message, context: Context) -> Message:
    """Train the global model and the personal head on the local examples."""
    config = Config.from_run_config(context.run_config)
    round_config = message.content["config"]
    examples, _ = load_data(config, context)
    model = load_model(config, message)
    head = load_personal_head(context, model) if config.personal_head else None
    loss = task.train(
        model,
        examples,
        epochs=config.local_epochs,
        batch_size=config.batch_size,
        learning_rate=round_config.get("learning-rate", config.learning_rate),
        momentum=config.momentum,
        seed=derive_seed(config.seed, round_config["server-round"], partition_id(context)),
        personal_head=head,
    )
    if not math.isfinite(loss):  # before the state changes: the last good head stays
        raise RuntimeError(f"training loss is {loss}; try a smaller learning-rate or momentum")
    if head is not None:
        context.state[PERSONAL_HEAD] = models.to_record(head)
    content = RecordDict(
        {
            "arrays": models.to_record(model),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(examples.labels)}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate(mods=[carry_head])
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on held-out examples, with its own and with the personal head."""
    config = Config.from_run_config(context.run_config)
    _, examples = load_data(config, context)
    model = load_model(config, message)
    heads = [model.head]
    if config.personal_head:
        heads.append(load_personal_head(context, model))
    (loss, accuracy), *personal = task.evaluate(model, examples, *heads)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(examples.labels)}
    for personal_loss, personal_accuracy in personal:
        metrics |= {"personal_eval_loss": personal_loss, "personal_eval_acc": personal_accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def load_data(config: Config, context: Context) -> tuple[task.Examples, task.Examples]:
    return task.load_partition(
        config.dataset,
        partition_id(context),
        int(context.node_config["num-partitions"]),
        config.dirichlet_alpha,
        config.min_partition_size,
        config.test_fraction,
        config.seed,
        config.test_split,
    )


def load_model(config: Config, message: Message) -> task.Net:
    model = task.Net(task.num_classes(config.dataset))
    models.load(model, message.content["arrays"])
    return model.to(task.device())


def load_personal_head(context: Context, model: task.Net) -> nn.Module:
    """Return a copy of the model's head, with this client's own weights if it has some."""
    head = deepcopy(model.head)
    if PERSONAL_HEAD in context.state:
        models.load(head, context.state[PERSONAL_HEAD])
    return head
