"""Whole models, and long adapters: found, trained and tested for `layerwise/`."""

from collections.abc import Callable
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.common import log

from flowertune_llm import central, smollm2
from flowertune_llm.config import Config
from flowertune_llm.kit.flower import partition_id
from flowertune_llm.kit.run import Run
from flowertune_llm.layerwise.shards import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
)


class WholeModels:
    """The server's side of a run on whole models, in the place of `Adapters`."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run, self.rounds = config, run, config.rounds

    def prepare(self) -> ArrayRecord:
        """Check the settings before clients start; return no arrays: clients have the model."""
        if self.config.trains:
            central.check(self.config)
            if self.config.evaluate_every_round:
                find(self.config, 0)
        elif self.config.num_server_rounds > 1:
            log(INFO, "Nothing is trained: one round is all there is to do")
        return ArrayRecord()

    def begin(self) -> None:
        """Log data and dtype."""
        if self.config.trains:
            central.report_data(self.config)
            central.report_precision(self.config, self.run)

    def remarks(self) -> dict[str, str]:
        """Return the server's dtype, for results.json, if clients train."""
        from flowertune_llm import models

        return {"dtype": models.dtype_name(self.config)} if self.config.trains else {}

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Test the global model in the run's folder, if this round has a test."""
        config = self.config
        if not (config.trains and config.tests(server_round)):
            return None
        path = self.run.folder / f"model_{server_round}" if server_round else find(config, 0)
        return central.test(config, lambda: load(config, path))

    def save(self) -> None:
        """Log the folder of the model, which aggregation has written."""
        folder = self.run.folder / f"model_{self.run.round}"
        if folder.is_dir():
            log(INFO, "Model: %s", folder)


def find(config: Config, partition: int) -> Path:
    """Return the folder of a client's `model.name`; fetch it from the Hub if need be.

    Raises:
        RuntimeError: it is not there, or cannot be averaged.
    """
    name = config.at(partition).model_name
    if name == smollm2.NAME:
        return smollm2.model_folder()
    if Path(name).is_dir():
        return check_model(Path(name).resolve())
    try:
        from huggingface_hub import snapshot_download  # imported here: seldom needed

        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the Hub's client has no common base class for its errors
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise RuntimeError(
            f"model.name = '{name}': no such folder, and not to be had from the Hub; give a local "
            f"folder, or an embedded name: {smollm2.NAME}, or one that begins with synthetic-. "
            f"({reason})"
        ) from None
    return check_model(folder)


def train_to_disk(
    message: Message, context: Context, start: Callable[[], Path], folder: Path
) -> dict[str, float]:
    """Train, and write the encoded change of the adapter, or all weights, into a folder.

    Args:
        message, context: the client's.
        start: returns the folder of the whole model to be trained.
        folder: of the result.
    """
    import safetensors.torch
    import torch

    from flowertune_llm import encoding, models, training

    partition = partition_id(context)
    config = Config.from_run_config(context.run_config).at(partition)
    server_round = int(message.content["config"]["server-round"])
    place = (server_round, partition, int(context.node_config["num-partitions"]))
    if config.whole_model:
        model = load(config, start())
        metrics = training.train(model, config, *place)
        model.save_pretrained(folder)
        models.load_tokenizer(config).save_pretrained(folder)
        return metrics
    received = encoding.decode(message.content["arrays"])
    change, metrics = training.train_adapter(config, received, *place)
    dtype = encoding.FLOATS[config.transport_dtype]
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in change.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return metrics


def load(config: Config, folder: Path) -> "PreTrainedModel":
    """Load a whole model to be trained or tested.

    Its weights stay in float32, whatever dtype it computes in: a step of 1e-5 is below the last bit
    of most weights in 16 bits, and would be rounded away (Micikevicius et al. 2018).

    Source: https://arxiv.org/abs/1710.03740

    Raises:
        RuntimeError: this machine cannot run it.
    """
    import torch

    from flowertune_llm import models

    models.check_platform(config)
    place = models.device_map(config.device_map)
    model = models.load_base(folder, models.key(config), dtype=torch.float32, device_map=place)
    model.config.use_cache = False
    if (dtype := models.dtype(config)) != torch.float32:
        model.forward = torch.autocast(model.device.type, dtype)(model.forward)
    return model
