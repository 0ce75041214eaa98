"""The client: loads model, tokenizer and data for each message; only the adapter is sent."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from straightforward_llm import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = context.run_config
    model = task.build(config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    rows = task.load_partition(
        config, context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    loss = task.train(model, rows, config, message.content["config"]["server-round"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(rows)})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
