"""The same federated training with pfl-research's simulation: its federated averaging and backend.

Runs in an environment of its own. Data, training and testing are the example's own functions, by
the jobs of `plain.py`, so that the framework is what differs.

    python pfl_research.py FILE
    python -m torch.distributed.run --standalone --nproc-per-node 2 pfl_research.py FILE

takes the file that `plain.py` takes, and prints the same lines. Two processes share the clients of
a round and the central test set, and add up what they have; that is not counted in bytes.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from plain import EXAMPLES, Example


class Clients(FederatedDatasetBase):
    """The clients drawn for each round's training, or testing: each process has its share."""

    def __init__(self, example: Example, training: bool) -> None:
        super().__init__()
        self.example, self.training, self.round = example, training, 0

    def __next__(self) -> tuple[Dataset, int]:
        raise NotImplementedError("clients are drawn a round at a time")

    def get_cohort(self, cohort_size: int) -> Iterable[tuple[Dataset, int]]:
        self.round += 1
        drawn, world = self.example.sampled(self.round, self.training), pytorch_ops.distributed
        for client in drawn[world.global_rank :: world.world_size]:
            about = {"client": client, "round": self.round, "test": not self.training}
            yield Dataset((np.zeros(1),), user_id=str(client), metadata=about), 0


class Model(PyTorchModel):
    """The example's network; only clients drawn for testing are tested."""

    def __init__(self, example: Example) -> None:
        network, self.example = example.network, example
        network.loss = network.metrics = None  # asked for, not used: the example has functions
        moved = torch.optim.SGD(network.parameters(), 1.0, momentum=example.momentum)
        super().__init__(network, torch.optim.SGD, moved)

    def evaluate(self, dataset: Dataset, name_formatting_fn: Any, eval_params: Any) -> Metrics:
        if dataset.metadata["test"]:
            self.example.test(dict(self.variable_map), dataset.metadata["client"])
        return Metrics([(name_formatting_fn("tested"), Weighted(1, 1))])


class Averaging(FederatedAveraging):
    """Federated averaging, weighted by examples, with the example's own training."""

    def train_one_user(
        self, initial_model_state: Any, model: Model, user_dataset: Dataset, central_context: Any
    ) -> tuple[Any, Metrics]:
        about = user_dataset.metadata
        _, count = model.example.train(dict(initial_model_state), about["round"], about["client"])
        difference = model.get_model_difference(initial_model_state)
        difference.reweight(count)
        return difference, Metrics()


class Lines(TrainingProcessCallback):
    """Tests the global model after each round, and prints a line."""

    def __init__(self, example: Example) -> None:
        rank, self.world = pytorch_ops.distributed.global_rank, pytorch_ops.distributed.world_size
        self.first, self.example = rank == 0, example
        example.central = type(example.central)(
            *(part[rank :: self.world] for part in example.central)
        )

    def on_train_begin(self, *, model: Model) -> Metrics:
        self.began = time.perf_counter()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Model, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        examples = len(self.example.central[1])
        right = self.example.score(dict(model.variable_map)) * examples
        right, examples = pytorch_ops.distributed.all_reduce(
            [torch.tensor(float(right)), torch.tensor(float(examples))]
        )
        if self.first:
            line = {"round": central_iteration + 1, "score": float(right / examples), "bytes": 0}
            print(json.dumps(line | {"seconds": time.perf_counter() - self.began}), flush=True)
        self.began = time.perf_counter()
        return False, Metrics()


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    example = EXAMPLES[asked["job"]](asked["config"], asked["clients"])
    rounds = asked["config"]["num-server-rounds"]
    drawn = [len(example.sampled(1, training)) for training in (True, False)]
    Averaging().run(
        NNAlgorithmParams(rounds, 1, *drawn),
        SimulatedBackend(Clients(example, True), Clients(example, False)),
        Model(example),
        NNTrainHyperParams(1, 1.0, None),
        callbacks=[Lines(example)],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.world_size > 1:
        torch.distributed.destroy_process_group()  # or PyTorch may abort as it ends


if __name__ == "__main__":
    main()
