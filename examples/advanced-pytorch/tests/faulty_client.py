"""A client that fails in training from round 2 on, as FAULT_<partition> in the environment says.

One of raise, nan, infinity, shape, metric, weight.
"""

import os

from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp
from pytorch_example import client_app


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        fault = os.environ.get(f"FAULT_{context.node_config['partition-id']}")
        reply = client_app.app(message, context)
        if fault is None or message.metadata.message_type != MessageType.TRAIN:
            return reply
        if message.content["config"]["server-round"] < 2:
            return reply
        if fault == "raise":
            raise OSError("the disk is full")
        arrays = reply.content["arrays"]
        weights = arrays["head.weight"].numpy().copy()
        if fault in ("nan", "infinity"):
            weights[3, 7] = float(fault)
        if fault == "shape":
            weights = weights[:-1]
        arrays["head.weight"] = Array(weights)
        if fault == "metric":
            reply.content["metrics"]["train_loss"] = float("nan")
        if fault == "weight":
            reply.content["metrics"]["num-examples"] = 0
        return reply


app = FaultyClient()
