"""A client that fails as FAULT_<partition> in the environment says.

One of raise, nan, shape (in training, from round 2 on), extract, sums (at the start of the run).
"""

import os

import numpy as np
from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp
from vit_finetune import client_app


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        kind = message.metadata.message_type
        fault = os.environ.get(f"FAULT_{context.node_config['partition-id']}")
        if fault == "extract" and kind.endswith("extract"):
            raise OSError("the camera is broken")
        reply = client_app.app(message, context)
        if fault == "sums" and "moments" in reply.content:
            moments = reply.content["moments"]
            moments["sum"] = Array(moments["sum"].numpy() * np.nan)
        if kind != MessageType.TRAIN or fault in (None, "sums"):
            return reply
        if message.content["config"]["server-round"] < 2:
            return reply
        if fault == "raise":
            raise OSError("the disk is full")
        arrays = reply.content["arrays"]
        weight = arrays["weight"].numpy().copy()
        if fault == "nan":
            weight[3, 7] = float("nan")
        if fault == "shape":
            weight = weight[:-1]
        arrays["weight"] = Array(weight)
        return reply


app = FaultyClient()
