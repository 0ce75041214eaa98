"""False positives of `max-update-ratio`: honest clients that it leaves out, in 20 hard settings.

Five clients train pytorch-from-centralized-to-federated on digits of two to ten classes, spread by
Dirichlet distributions from alpha 0.05 to 1, for 1 to 10 local epochs. All are honest, so each that
is left out is a mistake. Beside it stands what a guard by the round's median alone would leave out.
"""

import argparse
import itertools
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median_low
from typing import ClassVar

from centralized_to_federated.kit import guard, loop, testing
from common import SEED, measurement
from flwr.app import ArrayRecord, Message
from PIL import Image
from sklearn.datasets import load_digits

ALPHAS, EPOCHS, CLASSES = (0.05, 0.1, 0.3, 0.5, 1.0), (1, 10), (2, 10)
CLIENTS, ROUNDS, RATIO = 5, 8, 100.0
TRAINED = [60, 6]  # images of a common and of a rare class, in turn


def make_images(folder: Path, classes: int) -> None:
    """Write digits as 32x32 images, train and test, with some classes ten times as rare."""
    digits = load_digits()
    for label in range(classes):
        rows = (digits.target == label).nonzero()[0]
        trained = TRAINED[label % 2]
        for n, row in enumerate(rows[: trained + 20]):
            target = folder / ("train" if n < trained else "test") / str(label)
            target.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((digits.images[row] * 15).astype("uint8"))
            image.resize((32, 32), Image.Resampling.NEAREST).save(target / f"{row}.png")


class Watched(guard.Guard):
    """The guard, with the lengths that it has measured, and the usual length."""

    seen: ClassVar[list[tuple[list[float], list[str]]]] = []

    def problems(self, replies: Iterable[Message], sent: ArrayRecord) -> list[str]:
        replies = list(replies)
        names, _ = self.split(sent)
        lengths = [guard.length(reply.content["arrays"], sent, names) for reply in replies]
        found = super().problems(replies, sent)
        self.seen.append((lengths, found))
        return found


def measure(dataset: Path, alpha: float, epochs: int, classes: int) -> dict[str, float]:
    """Run one setting; return the numbers of honest updates and of those left out."""
    Watched.seen.clear()
    with tempfile.TemporaryDirectory() as folder:
        history = testing.in_process(
            Path(folder),
            CLIENTS,
            dataset=str(dataset),
            partitioning="dirichlet",
            dirichlet_alpha=alpha,
            min_partition_size=2,
            local_epochs=epochs,
            batch_size=4,
            num_server_rounds=ROUNDS,
            max_update_ratio=RATIO,
            fraction_evaluate=0.0,
        )
    by_median = [
        length
        for lengths, _ in Watched.seen
        for length in lengths
        if length > RATIO * median_low(lengths) > 0
    ]
    return {
        "alpha": alpha,
        "epochs": epochs,
        "classes": classes,
        "updates": sum(len(lengths) for lengths, _ in Watched.seen),
        "left_out": sum(bool(text) for _, found in Watched.seen for text in found),
        "left_out_by_median": len(by_median),
        "accuracy": history[-1]["evaluate_metrics_serverapp"]["accuracy"],
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.disable(logging.CRITICAL)
    loop.Guard = Watched
    with measurement("guard", seeds=(SEED,)) as result, tempfile.TemporaryDirectory() as folder:
        settings = result["settings"] = []
        for classes in CLASSES:
            make_images(Path(folder, str(classes)), classes)
        for alpha, epochs, classes in itertools.product(ALPHAS, EPOCHS, CLASSES):
            settings.append(measure(Path(folder, str(classes)), alpha, epochs, classes))
            print(settings[-1])


if __name__ == "__main__":
    main()
