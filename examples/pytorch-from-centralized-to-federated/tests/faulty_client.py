"""A client with a fault in training, which FAULT_<partition> in the environment names.

It is nan, or sleep:<file> (for ever, the first time; the file gets the process's id).
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
        reply = client_app.app(message, context)
        arrays = reply.content["arrays"]
        arrays["0.weight"] = Array(arrays["0.weight"].numpy() * np.nan)
        return reply


app = FaultyClient()
