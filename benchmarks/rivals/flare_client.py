"""A client of `flare.py`: tests the global model on its own data, trains it, sends it back."""

import json
import sys
from pathlib import Path

import nvflare.client as flare
import torch
from centralized_to_federated import task
from centralized_to_federated.task import load_partition


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    clients, config = asked["clients"], asked["config"]
    torch.set_num_threads(1)  # as many processes as clients share the cores
    flare.init()
    partition = int(flare.get_site_name().removeprefix("site-")) - 1
    training, test = load_partition(
        *(config["dataset"], partition, clients, config["partitioning"]),
        *(config["dirichlet-alpha"], config["min-partition-size"], config["seed"]),
    )
    network = task.build(config["network"], task.num_classes(config["dataset"]), config["seed"])
    while flare.is_running():
        received = flare.receive()
        network.load_state_dict(received.params)
        _, accuracy = task.evaluate(network, test)
        task.train(
            network,
            training,
            epochs=config["local-epochs"],
            batch_size=config["batch-size"],
            learning_rate=config["learning-rate"],
            momentum=config["momentum"],
            seed=task.derive_seed(config["seed"], received.current_round + 1, partition),
        )
        weight = {"NUM_STEPS_CURRENT_ROUND": len(training.labels)}
        metrics = {"accuracy": accuracy}
        flare.send(flare.FLModel(params=network.state_dict(), metrics=metrics, meta=weight))


if __name__ == "__main__":
    main()
