"""What the server does with the model itself: its first values, and the held-out loss."""

from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log

from flowertune_llm import models, profiling, serving, task, transport
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_split, load_test


def begin(config: Config) -> ArrayRecord:
    """Check what can be checked before clients start; return the first adapter.

    Returns:
        float32 arrays; none where whole models are trained, which clients have themselves.
    """
    task.check_training_arguments(config)
    models.load_tokenizer(config)
    if config.evaluate_every_round:
        models.check_platform(config)
        load_split(config.dataset, config.test_examples, config.seed)
    if config.whole_model:
        return ArrayRecord()
    return transport.encode(models.initial_adapter(config), "float32")


def evaluate(
    config: Config, folder: Path, server_round: int, arrays: ArrayRecord
) -> MetricRecord | None:
    """Test the global adapter, or the global model in the run's folder, in the rounds for it."""
    every = config.evaluate_every_round
    if not every or (server_round % every and server_round != config.num_server_rounds):
        return None
    with profiling.task("evaluate"):
        if config.whole_model:
            path = folder / f"model_{server_round}"
            model = models.load_whole(
                config, path if server_round else serving.base_folder(config, 0)
            )
        else:
            model = models.load_model(config)
            models.set_adapter(model, transport.decode(arrays))
        loss, perplexity = task.evaluate(model, load_test(config), config)
    return MetricRecord({"loss": loss, "perplexity": perplexity})


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
