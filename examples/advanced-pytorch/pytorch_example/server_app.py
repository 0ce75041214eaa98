"""The server: reads the config, starts or resumes the run, saves every round."""

from logging import ERROR, INFO
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from pytorch_example import task
from pytorch_example.checkpoint import RunFolder, RunState, write_json
from pytorch_example.config import Config
from pytorch_example.errors import shown
from pytorch_example.plot import draw_curves
from pytorch_example.privacy import PrivateFedAvg
from pytorch_example.strategy import CustomFedAvg
from pytorch_example.tracking import tracker

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    run_config = dict(context.run_config)
    earlier = RunFolder(Path(config.resume_from)) if config.resume_from else None
    state = earlier.load(run_config) if earlier else RunState(run_config)
    test_data = task.load_test(config.dataset)  # before anything is written
    folder = earlier or RunFolder.create(config.output_dir)
    log(INFO, "Outputs: %s", folder.path)
    if earlier:
        log(INFO, "Resuming after round %d of %d", state.round, config.num_server_rounds)
    if state.round >= 0:
        folder.save(state)  # the other files may be a round behind the checkpoint
    write_json(folder.config, run_config)
    torch.manual_seed(config.seed)
    model = task.Net(task.num_classes(config.dataset))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        model.to(task.device())
        [(loss, accuracy)] = task.evaluate(model, test_data, model.head)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    with tracker(config, folder, state) as log_round:

        def save_round() -> None:
            folder.save(state)
            log_round(state.history[-1])

        strategy = PrivateFedAvg if config.private else CustomFedAvg
        try:
            strategy(config, state, save_round).start(
                grid,
                ArrayRecord(model.state_dict()),
                num_rounds=config.num_server_rounds,
                timeout=config.round_timeout,
                evaluate_fn=evaluate,
            )
        except Exception:
            log(
                ERROR,
                "Stopped; round %d is safe: resume-from='%s'",
                folder.saved_round,
                folder.path,
            )
            raise
        finally:
            if state.history:
                draw_curves(state.history, folder.curves)
    log(INFO, "")
    log(INFO, "Results: %s", folder.results)
    log(INFO, "Curves:  %s", folder.curves)
    log(INFO, "Model:   %s (round %d)", folder.model, state.best_round)
    last = state.history[-1]["evaluate_metrics_serverapp"].get("accuracy", float("nan"))
    log(INFO, "Centralized accuracy: %.4f, best %.4f", last, state.best_accuracy)
    log(INFO, "Outputs: %s", folder.path)
