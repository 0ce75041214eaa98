"""The client: builds the ViT and a DataLoader for each message; only the head is sent."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from straightforward_vit import task

app = ClientApp()


def prepare(message: Message, context: Context) -> tuple[VisionTransformer, DataLoader, DataLoader]:
    model = task.build(context.run_config)
    model.heads.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_loader, test_loader = task.load_partition(
        context.run_config,
        context.node_config["partition-id"],
        context.node_config["num-partitions"],
    )
    return model, train_loader, test_loader


@app.train()
def train(message: Message, context: Context) -> Message:
    model, loader, _ = prepare(message, context)
    loss = task.train(model, loader, context.run_config)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.heads.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, _, loader = prepare(message, context)
    loss, accuracy = task.test(model, loader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
