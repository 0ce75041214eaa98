"""Both sides of the app; what runs it is the kit, as in the examples."""

import time
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from gpu_scaling.kit.clients import Clients, Draw
from gpu_scaling.kit.flower import identify, shown
from gpu_scaling.kit.loop import Loop
from gpu_scaling.kit.population import play
from gpu_scaling.kit.replies import to_numpy, to_record
from gpu_scaling.kit.run import Run
from gpu_scaling.kit.settings import Settings, at_least, positive

ARRAYS = 8  # that the model is made of


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`."""

    population: int = at_least(0)
    clients_to_train: int = at_least(1)
    megabytes: float = positive()
    train_seconds: float = positive()


client_app = ClientApp(mods=[play])
client_app.query()(identify)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Keep a core busy, and send the model back, a little changed."""
    config = Config.from_run_config(context.run_config)
    arrays = {name: value + 1 for name, value in to_numpy(message.content["arrays"]).items()}
    end = time.thread_time() + config.train_seconds
    while time.thread_time() < end:
        pass
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message)


server_app = ServerApp()


@server_app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    size = int(config.megabytes * 1e6 / 4 / ARRAYS)
    model = {f"layer-{i}": np.zeros(size, np.float32) for i in range(ARRAYS)}
    draw = Draw(config.clients_to_train, 0, config.min_replies, config.seed)
    clients = Clients(grid, config, population=config.population)
    with Run(config, context.run_config) as run:
        Loop(FedAvg(fraction_evaluate=0.0), run, draw, clients=clients).start(
            grid, to_record(model), config.num_server_rounds, config.round_timeout
        )
