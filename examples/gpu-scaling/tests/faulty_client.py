"""A client whose steps of training end badly, as FAULT_<partition> in the environment says.

One of kill (SIGKILL for the process that runs the step), memory (the step asks for too much), nan.
"""

import os
import signal

import numpy as np
from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp
from gpu_scaling import client_app


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        fault = os.environ.get(f"FAULT_{context.node_config['partition-id']}")
        if message.metadata.message_type == MessageType.TRAIN:
            if fault == "kill":
                client_app.run(context, signal.raise_signal, signal.SIGKILL)
            if fault == "memory":
                client_app.run(context, bytearray, 2**60)
        reply = client_app.app(message, context)
        if fault == "nan" and message.metadata.message_type == MessageType.TRAIN:
            arrays = reply.content["arrays"]
            arrays["0.weight"] = Array(arrays["0.weight"].numpy() * np.nan)
        return reply


app = FaultyClient()
