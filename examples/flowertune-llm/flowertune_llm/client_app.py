"""The client: trains on its own data and sends what changed, or serves its model in slices."""

import json
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flowertune_llm import profiling, serving
from flowertune_llm.config import Config

# PyTorch and transformers take seconds to import, and a process that serves a slice needs neither:
# what trains is imported where it is used.
from flowertune_llm.node import partition_id
from flowertune_llm.shards import Source

app = ClientApp(mods=[profiling.mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global adapter on the local examples; the base model stays as it is."""
    from flowertune_llm import training, transport

    config, asked = settings(message, context)
    received = transport.decode(message.content["arrays"])
    change, report = training.adapter(config, received, order(asked, context))
    content = {
        "arrays": transport.encode(change, config.transport_dtype),
        "metrics": MetricRecord(report),
    }
    return Message(RecordDict(content), reply_to=message)


@app.train("make_ready")
def make_ready(message: Message, context: Context) -> Message:
    """Train, where this run does, keep the result on disk, and tell what there is to serve."""
    config, asked = settings(message, context)
    partition = partition_id(context)
    report = {"num-examples": int(context.node_config.get("num-examples", 1))}
    if config.trains:
        report = train_to_disk(config, message, context)
    source = serving.served(config, partition, asked)
    manifest = {"tensors": json.dumps(list(source.tensors.values()))}
    manifest["fingerprint"] = source.fingerprint
    content = {"manifest": ConfigRecord(manifest), "metrics": MetricRecord(report)}
    return Message(RecordDict(content), reply_to=message)


def train_to_disk(config: Config, message: Message, context: Context) -> dict[str, float]:
    """Train, unless this round's result is there from before the run was interrupted."""
    asked, partition = message.content["config"], partition_id(context)
    folder = serving.trained_folder(config, partition, asked)
    if not folder.is_dir():
        from flowertune_llm import training, transport

        def save(path: Path) -> dict[str, float]:
            if config.whole_model:
                start = serving.global_folder(config, partition, asked)
                return training.save_whole_model(config, start, order(asked, context), path)
            received = transport.decode(message.content["arrays"])
            return training.save_adapter_change(config, received, order(asked, context), path)

        serving.keep(folder, save)
    return json.loads((folder / serving.REPORT).read_text())


@app.query("slice")
def serve_slice(message: Message, context: Context) -> Message:
    """Read the bytes asked for, and nothing else."""
    data = serving.read_parts(source(message, context), message.content["slice"])
    return Message(RecordDict({"data": serving.raw_record(data)}), reply_to=message)


@app.query("model")
def serve_model(message: Message, context: Context) -> Message:
    """Send the whole model at once."""
    arrays = serving.whole_model(source(message, context))
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


@app.query("files")
def serve_files(message: Message, context: Context) -> Message:
    """Send the model's config and tokenizer."""
    config, asked = settings(message, context)
    files = ConfigRecord(serving.files(config, partition_id(context), asked))
    return Message(RecordDict({"files": files}), reply_to=message)


@app.query("receive")
def receive(message: Message, context: Context) -> Message:
    """Write a piece of the new global model to this client's disk."""
    config, asked = settings(message, context)
    folder = serving.run_folder(config, partition_id(context), asked) / "global"
    data = message.content["data"]["data"].data if "data" in message.content else b""
    serving.receive(folder, message.content["piece"], data)
    return Message(RecordDict(), reply_to=message)


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Delete what this client keeps for the run."""
    config, asked = settings(message, context)
    serving.forget(config, partition_id(context), asked)
    return Message(RecordDict(), reply_to=message)


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Tell which partition this node holds: node ids are random."""
    node = MetricRecord({"partition-id": partition_id(context)})
    return Message(RecordDict({"node": node}), reply_to=message)


def settings(message: Message, context: Context) -> tuple[Config, ConfigRecord]:
    """Return the run config, and what the server said about this round."""
    return Config.from_run_config(context.run_config), message.content["config"]


def source(message: Message, context: Context) -> Source:
    config, asked = settings(message, context)
    return serving.served(config, partition_id(context), asked)


def order(asked: ConfigRecord, context: Context) -> serving.Order:
    """Return what a client's training needs to know of who and when it is."""
    partitions = int(context.node_config["num-partitions"])
    round_and_rate = int(asked["server-round"]), float(asked["learning-rate"])
    return serving.Order(partition_id(context), partitions, *round_and_rate)
