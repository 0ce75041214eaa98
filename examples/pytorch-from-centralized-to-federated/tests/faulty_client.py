"""A client with a fault in training, which FAULT_<partition> in the environment names.

It is raise, nan, shape, enormous, or sleep:<file> (for ever, the first time; the file gets the
process's id).
"""

import os
import time
from pathlib import Path

import numpy as np
from centralized_to_federated import client_app
from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        partition = context.node_config["partition-id"]
        fault = os.environ.get(f"FAULT_{partition}")
        if fault is None or message.metadata.message_type != MessageType.TRAIN:
            return client_app.app(message, context)
        if fault.startswith("sleep"):
            marker = Path(fault.removeprefix("sleep:"))
            if not marker.exists():
                marker.write_text(str(os.getpid()))
                time.sleep(3600)
            return client_app.app(message, context)
        if fault == "raise":
            raise OSError("the disk is full")
        reply = client_app.app(message, context)
        arrays = reply.content["arrays"]
        weight = arrays["0.weight"].numpy()
        bad = {"nan": weight * np.nan, "shape": weight[1:], "enormous": weight + np.float32(1e9)}
        arrays["0.weight"] = Array(bad[fault])
        return reply


app = FaultyClient()
