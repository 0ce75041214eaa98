"""The server of `flare.py`: FLARE's FedAvg, which tests the global model after each round."""

import json
import threading
import time
from typing import Any

import torch
from centralized_to_federated import task
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.f3.sfm.conn_manager import ConnManager
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection


class CountedBytes:
    """Counts the frames that this process sends to others and receives from them."""

    def __init__(self) -> None:
        self.total, self.lock = 0, threading.Lock()
        send, receive = SfmConnection.send_frame, ConnManager.process_frame

        def counted_send(
            connection: SfmConnection, prefix: Any, headers: dict | None, payload: Any
        ) -> None:
            send(connection, prefix, headers, payload)
            self.add(prefix.length)

        def counted_receive(manager: ConnManager, connection: SfmConnection, frame: Any) -> None:
            self.add(len(frame))
            receive(manager, connection, frame)

        SfmConnection.send_frame, ConnManager.process_frame = counted_send, counted_receive

    def add(self, count: int) -> None:
        with self.lock:
            self.total += count


COUNTED = CountedBytes()


class TimedFedAvg(FedAvg):
    """FedAvg that prints a line for each round: seconds, accuracy, bytes on the wire."""

    # FLARE carries over what is named here, and attributes of the same names.
    def __init__(
        self, num_clients: int, num_rounds: int, dataset: str, network: str, seed: int
    ) -> None:
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self.dataset, self.network, self.seed = dataset, network, seed

    def build(self) -> torch.nn.Module:
        return task.build(self.network, task.num_classes(self.dataset), self.seed)

    def load_model(self) -> FLModel:
        self.central = task.load(self.dataset, "test")
        self.began, self.bytes = time.perf_counter(), COUNTED.total
        return FLModel(params={k: v.numpy() for k, v in self.build().state_dict().items()})

    def save_model(self, model: FLModel) -> None:
        """Test the new global model, where FedAvg would save it: at the end of a round."""
        network = self.build()
        network.load_state_dict({k: torch.as_tensor(v) for k, v in model.params.items()})
        _, accuracy = task.evaluate(network, self.central)
        line = {"round": self.current_round + 1, "score": accuracy}
        line |= {"seconds": time.perf_counter() - self.began, "bytes": COUNTED.total - self.bytes}
        print(json.dumps(line), flush=True)
        self.began, self.bytes = time.perf_counter(), COUNTED.total
