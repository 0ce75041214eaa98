"""A client with a fault in the middle of the model, which FAULT_<partition> names.

It is raise, nan or short.
"""

import os

from flowertune_llm import client_app
from flowertune_llm.layerwise import serving
from flwr.app import RecordDict
from flwr.clientapp import ClientApp

NAN = b"\xff\x7f"  # the upper half of a float32, or all of a float16 or bfloat16


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        fault = os.environ.get(f"FAULT_{context.node_config['partition-id']}")
        asked = message.content.config_records.get("slice", {"name": []})["name"]
        if fault is None or not any("layers.2" in name for name in asked):
            return client_app.app(message, context)
        if fault == "raise":
            raise OSError("the disk is gone")
        reply = client_app.app(message, context)
        data = reply.content["data"]["data"].data
        bad = {"nan": data[:2] + NAN + data[4:], "short": data[8:]}[fault]
        reply.content = RecordDict({"data": serving.raw_record(bad)})
        return reply


app = FaultyClient()
