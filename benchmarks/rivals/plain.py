"""The same federated training without a framework: a loop over the clients, in one process.

For each example the loop calls its own functions for data, training and testing, with the same
clients sampled, the same seeds and the same step towards the average. So it does the same work and
reaches the same accuracy; what it lacks is what a federation is for. It is the limit to measure
against.

    python plain.py FILE

takes a JSON file with the keys `job` (an example's name), `clients` (their number) and `config`
(the run config), and prints a line of JSON for each round.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


class Example(Protocol):
    """What the loop needs to know of an example.

    Attributes:
        weights: of the global model, before the first round.
        momentum: of the server.
    """

    weights: Weights
    momentum: float

    def sampled(self, server_round: int, training: bool) -> list[int]:
        """Return the clients that train, or are tested, in a round."""

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        """Return a client's new weights, and how many examples it trained on."""

    def test(self, weights: Weights, client: int) -> None:
        """Test the global model on a client's own data."""

    def score(self, weights: Weights) -> float:
        """Return the accuracy on the central test set; for a language model, the loss."""


def run(example: Example, rounds: int) -> None:
    weights = example.weights
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    for server_round in range(1, rounds + 1):
        began = time.perf_counter()
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        examples = 0
        for client in example.sampled(server_round, training=True):
            trained, count = example.train(weights, server_round, client)
            examples += count
            for name, value in trained.items():
                total[name] += value * count
        for name, value in weights.items():
            velocity[name] = example.momentum * velocity[name] + total[name] / examples - value
        weights = {name: value + velocity[name] for name, value in weights.items()}
        for client in example.sampled(server_round, training=False):
            example.test(weights, client)
        line = {"round": server_round, "score": example.score(weights), "bytes": 0}
        line["seconds"] = time.perf_counter() - began
        print(json.dumps(line), flush=True)


def draw(clients: int, count: int, *seed: int) -> list[int]:
    """Sample clients as the examples' rounds.py does."""
    return sorted(np.random.default_rng(seed).permutation(list(range(clients)))[:count].tolist())


def draw_share(config: Any, clients: int, server_round: int, training: bool) -> list[int]:
    """Sample the share of the clients that the run config has for training, or for testing."""
    share = config.fraction_train if training else config.fraction_evaluate
    return draw(clients, int(clients * share), config.seed, server_round, training)


def derive_seed(*parts: int) -> int:
    """Derive a seed as the examples' clients do."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def copied(module: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Cifar:
    """pytorch-from-centralized-to-federated."""

    def __init__(self, run_config: dict[str, Any], clients: int) -> None:
        from centralized_to_federated import task
        from centralized_to_federated.config import Config
        from centralized_to_federated.task import load_partition

        self.task, self.clients = task, clients
        self.config = c = Config.from_run_config(run_config)
        split = c.partitioning, c.dirichlet_alpha, c.min_partition_size, c.seed
        self.data = [load_partition(c.dataset, i, clients, *split) for i in range(clients)]
        self.central = task.load(c.dataset, "test")
        self.network = task.build(c.network, task.num_classes(c.dataset), c.seed)
        self.weights, self.momentum = copied(self.network), c.server_momentum

    def sampled(self, server_round: int, training: bool) -> list[int]:
        return draw_share(self.config, self.clients, server_round, training)

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        self.network.load_state_dict(weights)
        data = self.data[client][0]
        self.task.train(
            self.network,
            data,
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            momentum=self.config.momentum,
            seed=self.task.derive_seed(self.config.seed, server_round, client),
        )
        return copied(self.network), len(data.labels)

    def test(self, weights: Weights, client: int) -> None:
        self.network.load_state_dict(weights)
        self.task.evaluate(self.network, self.data[client][1])

    def score(self, weights: Weights) -> float:
        self.network.load_state_dict(weights)
        return self.task.evaluate(self.network, self.central)[1]


class FashionMnist:
    """advanced-pytorch, with a personal head for each client."""

    def __init__(self, run_config: dict[str, Any], clients: int) -> None:
        from pytorch_example import task
        from pytorch_example.config import Config

        self.task, self.clients = task, clients
        self.config = c = Config.from_run_config(run_config)
        split = c.dirichlet_alpha, c.min_partition_size, c.test_fraction, c.seed
        self.data = [task.load_partition(c.dataset, i, clients, *split) for i in range(clients)]
        self.central = task.load_test(c.dataset)
        torch.manual_seed(c.seed)
        self.network = task.Net(task.num_classes(c.dataset))
        self.weights, self.momentum = copied(self.network), c.server_momentum
        self.heads: dict[int, nn.Linear] = {}

    def sampled(self, server_round: int, training: bool) -> list[int]:
        return draw_share(self.config, self.clients, server_round, training)

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        self.network.load_state_dict(weights)
        if client not in self.heads:
            self.heads[client] = nn.Linear(
                self.network.head.in_features, self.network.head.out_features
            )
            self.heads[client].load_state_dict(self.network.head.state_dict())
        data, c = self.data[client][0], self.config
        self.task.train(
            self.network,
            data,
            epochs=c.local_epochs,
            batch_size=c.batch_size,
            learning_rate=c.learning_rate * c.learning_rate_decay ** (server_round - 1),
            momentum=c.momentum,
            seed=derive_seed(c.seed, server_round, client),
            personal_head=self.heads[client],
        )
        return copied(self.network), len(data.labels)

    def test(self, weights: Weights, client: int) -> None:
        self.network.load_state_dict(weights)
        head = self.heads.get(client, self.network.head)
        self.task.evaluate(self.network, self.data[client][1], self.network.head, head)

    def score(self, weights: Weights) -> float:
        self.network.load_state_dict(weights)
        [(_, accuracy)] = self.task.evaluate(self.network, self.central, self.network.head)
        return accuracy


class Flowers:
    """vit-finetune: features once, then the head."""

    def __init__(self, run_config: dict[str, Any], clients: int) -> None:
        from vit_finetune import task
        from vit_finetune.config import Config

        self.task, self.clients = task, clients
        self.config = c = Config.from_run_config(run_config)
        self.central = task.load_test(c)[0]
        self.data = [task.load_partition(c, i, clients) for i in range(clients)]
        moments = [task.moments(part.training) for part in self.data]
        total = {name: sum(part[name] for part in moments) for name in moments[0]}
        width = task.load_backbone(c).width
        self.head = task.Head(width, self.data[0].num_classes, task.statistics(total))
        self.weights, self.momentum = copied(self.head), c.server_momentum

    def sampled(self, server_round: int, training: bool) -> list[int]:
        return draw_share(self.config, self.clients, server_round, training)

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        self.head.load_state_dict(weights)
        source = self.data[client].training
        self.task.train(
            self.head,
            source,
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            momentum=self.config.momentum,
            label_smoothing=self.config.label_smoothing,
            seed=derive_seed(self.config.seed, server_round, client),
        )
        return copied(self.head), len(source.labels)

    def test(self, weights: Weights, client: int) -> None:
        self.head.load_state_dict(weights)
        self.task.evaluate(self.head, self.data[client].held_out)

    def score(self, weights: Weights) -> float:
        self.head.load_state_dict(weights)
        return self.task.evaluate(self.head, self.central)[1]


class Language:
    """flowertune-llm: the adapter only; its score is the held-out loss."""

    momentum = 0.0

    def __init__(self, run_config: dict[str, Any], clients: int) -> None:
        from flowertune_llm import dataset, models, task
        from flowertune_llm.config import Config

        self.dataset, self.models, self.task = dataset, models, task
        self.config, self.clients = Config.from_run_config(run_config), clients
        self.model = models.load_model(self.config)
        initial = models.initial_adapter(self.config)
        self.weights = {name: torch.from_numpy(value) for name, value in initial.items()}

    def sampled(self, server_round: int, training: bool) -> list[int]:
        if not training:
            return []
        count = max(int(self.clients * self.config.fraction_train), self.config.min_replies)
        return draw(self.clients, count, self.config.seed, server_round)

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        data = self.dataset.load_partition(self.config, client, self.clients)
        self.set(weights)
        learning_rate = self.config.learning_rate(server_round)
        seed = derive_seed(self.config.seed, server_round, client)
        self.task.train(self.model, data, self.config, learning_rate, seed)
        trained = self.models.get_adapter(self.model)
        return {name: torch.from_numpy(value) for name, value in trained.items()}, len(data)

    def test(self, weights: Weights, client: int) -> None:
        """Nobody asks a client to test: the example tests on the server only."""

    def score(self, weights: Weights) -> float:
        self.set(weights)
        return self.task.evaluate(self.model, self.dataset.load_test(self.config), self.config)[0]

    def set(self, weights: Weights) -> None:
        arrays = {name: value.numpy() for name, value in weights.items()}
        self.models.set_adapter(self.model, arrays)


class ManyClients:
    """gpu-scaling."""

    def __init__(self, run_config: dict[str, Any], clients: int) -> None:
        from gpu_scaling import task
        from gpu_scaling.config import Config

        self.task, self.clients = task, clients
        self.config = c = Config.from_run_config(run_config)
        self.source = c.source(clients).prepare()
        self.central = self.source.load("test")
        self.network = task.build(self.source.num_classes, c.seed)
        self.weights, self.momentum = copied(self.network), c.server_momentum

    def sampled(self, server_round: int, training: bool) -> list[int]:
        count = self.config.clients_to_train if training else self.config.clients_to_evaluate
        return draw(self.clients, count, self.config.seed, server_round, training)

    def train(self, weights: Weights, server_round: int, client: int) -> tuple[Weights, int]:
        self.network.load_state_dict(weights)
        examples = self.source.load("train", client)
        self.task.train(
            self.network,
            *examples,
            epochs=self.config.local_epochs,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            momentum=self.config.momentum,
            seed=derive_seed(self.config.seed, server_round, client),
        )
        return copied(self.network), len(examples.labels)

    def test(self, weights: Weights, client: int) -> None:
        self.network.load_state_dict(weights)
        self.task.evaluate(self.network, *self.source.load("test", client))

    def score(self, weights: Weights) -> float:
        self.network.load_state_dict(weights)
        return self.task.evaluate(self.network, *self.central)[1]


EXAMPLES: dict[str, type[Example]] = {
    "vit-finetune": Flowers,
    "advanced-pytorch": FashionMnist,
    "pytorch-from-centralized-to-federated": Cifar,
    "flowertune-llm": Language,
    "gpu-scaling": ManyClients,
}

if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    run(
        EXAMPLES[asked["job"]](asked["config"], asked["clients"]),
        asked["config"]["num-server-rounds"],
    )
