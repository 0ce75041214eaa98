"""The centralised project: train a small CNN on CIFAR-10 and test it."""

import argparse

from centralized_to_federated import task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help='also a folder, or "digits"')
    parser.add_argument("--test-split", default="test", help="or a share to hold out, 20%%")
    parser.add_argument("--network", default="compact", choices=task.NETWORKS, help="which CNN")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a step")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of SGD")
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    parser.add_argument("--seed", type=int, default=42, help="of weights and order")
    arguments = parser.parse_args()

    task.check(arguments.dataset, arguments.test_split)
    training = task.load(arguments.dataset, "train", arguments.test_split)
    test = task.load(arguments.dataset, "test", arguments.test_split)
    network = task.build(arguments.network, task.num_classes(arguments.dataset), arguments.seed)
    loss = task.train(
        network,
        training,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        momentum=arguments.momentum,
        seed=task.derive_seed(arguments.seed),
        progress=True,
    )
    print(f"Training loss: {loss:.4f}")
    loss, accuracy = task.evaluate(network, test)
    print(f"Test loss: {loss:.4f}, accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
