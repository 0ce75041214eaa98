"""The server: sends the global adapter out, averages what comes back, tests it, saves it."""

from logging import INFO, WARNING

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from flowertune_llm import models, profiling, task, transport
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_split, load_test
from flowertune_llm.errors import shown
from flowertune_llm.outputs import open_run
from flowertune_llm.strategy import AdapterFedAvg

app = ServerApp()


@app.main()
@shown
def main(grid: Grid, context: Context) -> None:
    config = Config.from_run_config(context.run_config)
    task.check_training_arguments(config)
    models.load_tokenizer(config)
    initial = models.initial_adapter(config)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        every = config.evaluate_every_round
        if not every or (server_round % every and server_round != config.num_server_rounds):
            return None
        with profiling.task("evaluate"):
            model = models.load_model(config)
            models.set_adapter(model, transport.decode(arrays))
            loss, perplexity = task.evaluate(model, load_test(config), config)
        return MetricRecord({"loss": loss, "perplexity": perplexity})

    if config.evaluate_every_round:
        models.check_platform(config)
        report_data(config)
    with open_run(config, dict(context.run_config)) as (state, save):
        AdapterFedAvg(config, state, save).start(
            profiling.watched(grid),
            transport.encode(initial, "float32"),
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )


def report_data(config: Config) -> None:
    """Say how much data there is, and what of it is left out."""
    split = load_split(config.dataset, config.test_examples, config.seed)
    log(INFO, "Data: %d rows for the clients, %d for the test", len(split.train), len(split.test))
    if split.unanswered:
        log(
            WARNING,
            "dataset = '%s': %d rows without an answer left out",
            config.dataset,
            split.unanswered,
        )
