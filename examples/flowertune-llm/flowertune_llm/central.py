"""The server's own work on adapters: first values, held-out loss, files.

PyTorch and transformers take seconds to import, and a server that only averages needs neither. So
they are imported where they are used.
"""

from collections.abc import Callable
from logging import INFO, WARNING
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log

from flowertune_llm import profiler  # profiler
from flowertune_llm.config import Config
from flowertune_llm.kit.replies import to_numpy, to_record
from flowertune_llm.kit.run import Run

if TYPE_CHECKING:
    from flowertune_llm.task import Model


class Adapters:
    """The server's side of a run that trains an adapter."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.rounds = config.num_server_rounds

    def prepare(self) -> ArrayRecord:
        """Check the settings before clients start; return the first adapter in float32."""
        check(self.config)
        from flowertune_llm import models

        return to_record(models.initial_adapter(self.config))

    def begin(self) -> None:
        """Log data and dtype; write an adapter that an interruption has left unwritten."""
        report_data(self.config)
        report_precision(self.config, self.run)
        self.save()

    def remarks(self) -> dict[str, str]:
        """Return the server's dtype, for results.json."""
        from flowertune_llm import models

        return {"dtype": models.dtype_name(self.config)}

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Test the global adapter, if this round has a test."""
        config = self.config
        if not config.tests(server_round):
            return None
        from flowertune_llm import models

        def load() -> "Model":
            model = models.load_model(config)
            models.set_adapter(model, to_numpy(arrays))
            return model

        return test(config, load)

    def save(self) -> None:
        """Write the adapter, if this round is one to keep, or the last."""
        if self.config.saves(self.run.round) or self.run.stalled:
            self.keep()

    @profiler.task("adapter")  # profiler
    def keep(self) -> None:
        """Write the adapter in PEFT's format."""
        from flowertune_llm import models

        folder = self.run.folder / f"peft_{self.run.round}"
        models.save_adapter(self.run.arrays, self.config, folder)
        log(INFO, "Adapter: %s", folder)


def check(config: Config) -> None:
    """Try all that the run will need; errors name the key."""
    from flowertune_llm import dataset, models, task

    task.check_training_arguments(config)
    models.load_tokenizer(config)
    models.check_length(config)
    if config.evaluate_every_round:
        models.check_platform(config)
        dataset.load_split(config.dataset, config.test_examples, config.seed)


def report_data(config: Config) -> None:
    """Log the numbers of rows, and of those left out, if the server tests."""
    if not config.evaluate_every_round:
        return
    from flowertune_llm import dataset

    split = dataset.load_split(config.dataset, config.test_examples, config.seed)
    log(INFO, "Data: %d rows for the clients, %d for the test", len(split.train), len(split.test))
    if split.unanswered:
        message = "dataset = '%s': %d rows without an answer left out"
        log(WARNING, message, config.dataset, split.unanswered)
    dataset.load_test(config)


def report_precision(config: Config, run: Run) -> None:
    """Log the server's dtype, which "auto" may change when a run is resumed elsewhere."""
    from flowertune_llm import models

    log(INFO, "Computing in %s; each client chooses where it runs", models.precision(config))
    now = models.dtype_name(config)
    before = run.history[-1].get("dtype", now) if run.history else now
    if before != now:
        message = "model.dtype = '%s' meant %s so far; on this machine the run goes on in %s"
        log(WARNING, message, config.dtype, before, now)


@profiler.task("evaluate")  # profiler
def test(config: Config, load: Callable[[], "Model"]) -> MetricRecord:
    """Return a model's loss and perplexity on the held-out examples."""
    from flowertune_llm import dataset, task

    loss, perplexity = task.evaluate(load(), dataset.load_test(config), config)
    return MetricRecord({"loss": loss, "perplexity": perplexity})
