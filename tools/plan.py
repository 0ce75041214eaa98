"""What a round will cost: seconds and bytes, from the clients drawn, the model, and the link.

Seconds come from a model that was fitted to rounds measured in simulation (results/
population-cost.json); a link adds the time that its bits take. A round costs the same whatever the
population, so the number of clients only has to be as large as that of those drawn.
"""

import argparse
import math

from measured import found, place


def terms(drawn: int, workers: int, megabytes: float) -> list[float]:
    """Return what the seconds of a round are a sum of, each times a factor, beside the training."""
    moved = drawn * megabytes
    return [1.0, drawn / workers, moved / workers, moved]


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0, and finite")
    return value


def count(text: str) -> int:
    positive(text)
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=count, required=True, help="of the population")
    parser.add_argument("--drawn", type=count, required=True, help="clients that train in a round")
    parser.add_argument("--model-mb", type=positive, required=True, help="MB of the model's arrays")
    parser.add_argument("--link-mbit", type=positive, default=math.inf, help="server's, Mbit/s")
    parser.add_argument("--train-seconds", type=positive, default=0.05, help="of a core, a client")
    parser.add_argument("--workers", type=count, default=2, help="nodes that train at once")
    asked = parser.parse_args()
    if asked.drawn > asked.clients:
        parser.error(f"--drawn = {asked.drawn} is more than --clients = {asked.clients}")
    measured = found("population-cost")
    if measured is None:
        parser.error("nothing was measured yet: python benchmarks/population.py cost")
    moved = asked.drawn * asked.model_mb
    training = asked.drawn * asked.train_seconds / asked.workers
    parts = terms(asked.drawn, asked.workers, asked.model_mb)
    around = sum(factor * part for factor, part in zip(measured["factors"], parts, strict=True))
    down = min(asked.drawn, asked.workers) * asked.model_mb
    link = 8 * (down + moved) / asked.link_mbit
    off = {k: max(abs(case["error"]) for case in measured[k]) for k in ("fitted", "others")}
    print(
        f"A round of {asked.drawn:,} of {asked.clients:,} clients, {asked.workers} at once: "
        f"{training + around + link:.2f} s\n"
        f"  training  {training:8.2f} s   {asked.train_seconds} s for each client\n"
        f"  around it {around:8.2f} s   messages, copies, averaging\n"
        f"  the link  {link:8.2f} s   {down:.1f} MB down, {moved:.1f} MB up\n"
        f"  memory of the server for replies: {moved:.0f} MB\n"
        f"Fitted to rounds on {place(measured)}: off by up to {off['fitted']:.0%} there, "
        f"{off['others']:.0%} in rounds that it was not fitted to."
    )


if __name__ == "__main__":
    main()
