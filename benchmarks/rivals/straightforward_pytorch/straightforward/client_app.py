"""The client: builds a DataLoader for each message."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader

from straightforward import task

app = ClientApp()


def prepare(message: Message, context: Context) -> tuple[nn.Module, DataLoader, DataLoader]:
    net = task.build(context.run_config)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_loader, test_loader = task.load_partition(
        context.run_config,
        context.node_config["partition-id"],
        context.node_config["num-partitions"],
    )
    return net, train_loader, test_loader


@app.train()
def train(message: Message, context: Context) -> Message:
    net, loader, _ = prepare(message, context)
    config = context.run_config
    loss = task.train(net, loader, config["learning-rate"], config["momentum"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    net, _, loader = prepare(message, context)
    loss, accuracy = task.test(net, loader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
