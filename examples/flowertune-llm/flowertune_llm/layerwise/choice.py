"""Choice between aggregation layer by layer and all at once."""

from dataclasses import dataclass
from logging import INFO

from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp.strategy import FedAvg, Strategy

from flowertune_llm.encoding import LEVELS
from flowertune_llm.kit.clients import Clients
from flowertune_llm.kit.run import Run
from flowertune_llm.layerwise.rounds import Layers
from flowertune_llm.layerwise.settings import LayerwiseSettings


@dataclass(frozen=True)
class Choice:
    """The way in which a run aggregates.

    Args:
        strategy: must be FedAvg for aggregation layer by layer.
        config: the settings.
        by_layers: whether aggregation is layer by layer.
        words: the way and its reason, for the log.
    """

    strategy: Strategy
    config: LayerwiseSettings
    by_layers: bool
    words: str

    def layers(self, run: Run, clients: Clients, traffic: dict[str, int]) -> Layers | None:
        """Log the choice, and return the `Layers` of the run; None if it has none."""
        log(INFO, "Aggregation: %s", self.words)
        if not (self.by_layers and isinstance(self.strategy, FedAvg)):
            return None
        return Layers(self.config, run, clients, self.strategy, traffic)


def choose(config: LayerwiseSettings, strategy: Strategy, initial: ArrayRecord) -> Choice:
    """Choose how a run aggregates: an adapter that fits into one slice is sent whole.

    Raises:
        ValueError: the strategy is not FedAvg, which layer by layer needs.
    """
    name, size = type(strategy).__name__, sum(len(array.data) for array in initial.values())
    mode = f'aggregation.mode = "{config.aggregation_mode}"'
    sizes = f"the adapter has {size / 2**20:.1f} MB and aggregation.slice-megabytes = "
    sizes += str(config.slice_megabytes)
    by_slices = config.aggregation_mode == "layerwise"
    if not config.whole_model and config.transport_dtype in LEVELS:
        reason = f'strategy.transport-dtype = "{config.transport_dtype}", and adapters travel whole'
        return Choice(strategy, config, False, f"{name}, since {reason}")
    if not config.whole_model and not (by_slices and size > config.slice_bytes):
        reason = sizes if by_slices else mode
        return Choice(strategy, config, False, f"{name}, since {reason}")
    if type(strategy) is not FedAvg:
        reason, way_out = sizes, 'set aggregation.mode = "all_at_once" or longer slices'
        if config.whole_model:
            reason, way_out = "whole models are averaged", "train an adapter"
        raise ValueError(
            f"{name} would never be asked to aggregate: {reason}, so that clients' models are "
            f"averaged layer by layer, by FedAvg's weighted mean; use FedAvg, or {way_out}"
        )
    if config.whole_model and not by_slices:
        return Choice(strategy, config, True, f"all models at once, since {mode}")
    reason = f"whole models are averaged and {mode}" if config.whole_model else sizes
    return Choice(strategy, config, True, f"layer by layer, since {reason}")
