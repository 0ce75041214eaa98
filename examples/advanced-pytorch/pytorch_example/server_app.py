"""The server: reads the config, starts or resumes the run, saves every round."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from pytorch_example import task
from pytorch_example.config import Config
from pytorch_example.errors import shown
from pytorch_example.outputs import open_run, state_of
from pytorch_example.privacy import PrivateFedAvg
from pytorch_example.strategy import CustomFedAvg
from pytorch_example.tracking import tracker

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    state = state_of(config, dict(context.run_config))
    test_data = task.load_test(config.dataset)  # before anything is written
    torch.manual_seed(config.seed)
    model = task.Net(task.num_classes(config.dataset))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        model.to(task.device())
        [(loss, accuracy)] = task.evaluate(model, test_data, model.head)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    with (
        open_run(config, state) as run,
        tracker(config, run.folder, run.state.config) as log_round,
    ):

        def save_round() -> None:
            run.save()
            log_round(run.state.history[-1])

        strategy = PrivateFedAvg if config.private else CustomFedAvg
        strategy(config, run.state, save_round).start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )
