# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""An app of a few numbers: each client pulls the model towards its own target."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import FedAvg, Strategy

from .. import population
from ..clients import Clients, Draw
from ..flower import identify, partition_id
from ..in_process import InProcessGrid, make_nodes
from ..loop import Loop
from ..replies import to_numpy, to_record
from ..run import Run
from ..settings import Settings, at_least, fraction, one_of, positive

RUN_CONFIG: dict[str, Any] = {
    "dataset": "numbers",
    "num-server-rounds": 4,
    "stop-after": 0,
    "min-replies": 2,
    "max-update-ratio": 100.0,
    "round-timeout": 5.0,
    "seed": 42,
    "output-dir": "outputs",
    "resume-from": "",
    "fraction-train": 1.0,
    "fraction-evaluate": 1.0,
    "local.learning-rate": 0.5,
    "kind": "plain",
    "waves": 0,
    "population": 0,
}
MODEL = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}


@dataclass(frozen=True)
class Config(Settings):
    """The tiny app's own settings."""

    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    learning_rate: float = positive("local.learning-rate")
    kind: str = one_of("plain", "clipped")
    waves: int = at_least(0, may_change=True)
    population: int = at_least(0)


def client(*mods: Any) -> ClientApp:
    """Return the tiny app's ClientApp; `mods` are those of training."""
    app = ClientApp(mods=[population.play])
    app.query()(identify)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        config, partition = Config.from_run_config(context.run_config), partition_id(context)
        arrays = to_numpy(message.content["arrays"])
        new = {
            name: (value + config.learning_rate * (partition + 1 - value)).astype(value.dtype)
            if value.dtype.kind == "f"
            else value + partition + 1  # a counter
            for name, value in arrays.items()
        }
        metrics = {"train_loss": float(partition), "num-examples": partition + 1}
        content = {"arrays": to_record(new), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = {"eval_loss": float(partition_id(context)), "num-examples": 1}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


CLIENT, CLIPPED_CLIENT = client(), client(fixedclipping_mod)


def play(
    make_strategy: Callable[[], Strategy] = FedAvg,
    nodes: int = 4,
    client_app: Any = CLIENT,
    evaluate: Callable[[int, Any], Any] | None = None,
    model: dict[str, np.ndarray] = MODEL,
    buffers: Collection[str] = (),
    **changes: Any,
) -> Run:
    """Run the tiny app and return its run; `changes` are settings, with - and . as _ and __."""
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    config = Config.from_run_config(RUN_CONFIG | named)
    grid = InProcessGrid(client_app, make_nodes(nodes, 1, RUN_CONFIG | named), 1, threads=1)
    run = Run(config, RUN_CONFIG | named)
    draw = Draw(config.fraction_train, config.fraction_evaluate, config.min_replies, config.seed)
    clients = Clients(grid, config, at_once=config.waves, population=config.population)

    def test(server_round: int, arrays: Any) -> MetricRecord:
        if evaluate and (metrics := evaluate(server_round, arrays)):
            return metrics
        weight = arrays["weight"].numpy()
        return MetricRecord({"accuracy": server_round / 10, "loss": float(np.abs(weight).sum())})

    loop = Loop(make_strategy(), run, draw, buffers=buffers, clients=clients)
    with run:
        loop.start(
            grid,
            to_record(model),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=test,
        )
    return run
