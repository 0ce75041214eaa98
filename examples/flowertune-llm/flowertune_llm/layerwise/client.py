"""The client's side: replies to the requests to get ready, and for slices."""

import json
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flowertune_llm.kit.flower import partition_id
from flowertune_llm.layerwise import serving
from flowertune_llm.layerwise.serving import Find, Site
from flowertune_llm.layerwise.settings import LayerwiseSettings

Train = Callable[[Message, Context, Callable[[], Path], Path], dict[str, float]]


def register(app: ClientApp, settings: type[LayerwiseSettings], find: Find, train: Train) -> None:
    """Add the replies of aggregation layer by layer to a ClientApp.

    Args:
        app: the app's.
        settings: class that reads the run config.
        find: returns the folder of a client's own model, from settings and partition.
        train: trains the model in a folder, or the adapter in a message, and writes the result
            into another folder; returns the metrics.
    """

    def site(message: Message, context: Context) -> Site:
        config = settings.from_run_config(context.run_config)
        return Site(config, partition_id(context), message.content["config"], find)

    @app.train("make_ready")
    def make_ready(message: Message, context: Context) -> Message:
        """Train, if clients train, keep the result on disk, and reply with its list of tensors."""
        here = site(message, context)
        metrics = {"num-examples": int(context.node_config.get("num-examples", 1))}
        if here.config.trains:
            metrics = here.keep(lambda folder: train(message, context, here.start, folder))
        source = here.served()
        manifest = {"tensors": json.dumps(list(source.tensors.values()))}
        manifest["fingerprint"] = source.fingerprint
        content = {"manifest": ConfigRecord(manifest), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.query("slice")
    def serve_slice(message: Message, context: Context) -> Message:
        """Reply with the requested bytes, read from disk."""
        data = serving.read_spans(site(message, context).served(), message.content["slice"])
        return Message(RecordDict({"data": serving.raw_record(data)}), reply_to=message)

    @app.query("model")
    def serve_model(message: Message, context: Context) -> Message:
        """Send the whole model at once."""
        arrays = serving.whole_model(site(message, context).served())
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @app.query("files")
    def serve_files(message: Message, context: Context) -> Message:
        """Send the model's config and tokenizer."""
        files = ConfigRecord(site(message, context).files())
        return Message(RecordDict({"files": files}), reply_to=message)

    @app.query("receive")
    def receive(message: Message, context: Context) -> Message:
        """Write a piece of the new global model to this client's disk."""
        data = message.content["data"]["data"].data if "data" in message.content else b""
        site(message, context).receive(message.content["piece"], data)
        return Message(RecordDict(), reply_to=message)
