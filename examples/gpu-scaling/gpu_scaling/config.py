"""The run config as one typed, checked object."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

from gpu_scaling.dataset import Source
from gpu_scaling.executors import Options
from gpu_scaling.steps import Training


def key(check: Any, allowed: str, name: str = "") -> Any:
    """Declare a run-config key: a test of its value and, for the error, what is allowed."""
    return field(metadata={"check": check, "allowed": allowed, "name": name})


def at_least(low: float) -> Any:
    return key(lambda v: v >= low, f"a number of at least {low}")


def fraction(*, zero: bool = False, one: bool = True) -> Any:
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    return key(
        lambda v: (v >= 0 if zero else v > 0) and (v <= 1 if one else v < 1),
        f"a number in {bounds}",
    )


def positive() -> Any:
    return key(lambda v: 0 < v < float("inf"), "a number above 0")


def some_text(name: str = "") -> Any:
    return key(lambda v: v.strip() != "", "a non-empty text", name)


def one_of(*choices: str, name: str = "") -> Any:
    return key(choices.__contains__, f"one of {', '.join(choices)}", name)


# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    *("executor", "workers", "memory-share", "recycle-after", "pool-idle", "step-timeout"),
    *("cache-dir", "num-server-rounds", "min-clients", "messages-at-once", "min-replies"),
    *("max-update-ratio", "round-timeout", "output-dir", "resume-from"),
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    executor: str = one_of("inline", "spawn", "pool")
    workers: int = at_least(0)
    memory_share: float = fraction()
    recycle_after: int = at_least(1)
    pool_idle: float = positive()
    step_timeout: float = positive()
    threads: int = at_least(1)
    dataset: str = some_text()
    partitioning: str = one_of("iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(1)
    cache_dir: str = key(lambda v: True, "a folder, or empty")
    num_server_rounds: int = at_least(1)
    min_clients: int = at_least(1)
    clients_to_train: int = at_least(1)
    clients_to_evaluate: int = at_least(0)
    messages_at_once: int = at_least(0)
    min_replies: int = at_least(1)
    max_update_ratio: float = key(lambda v: v > 1, "a number above 1")
    round_timeout: float = positive()
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    server_momentum: float = fraction(zero=True, one=False)
    seed: int = at_least(0)
    output_dir: str = some_text()
    resume_from: str = key(lambda v: True, "a folder of an earlier run, or empty")

    @classmethod
    def from_run_config(cls, run_config: dict[str, Any]) -> Self:
        """Read and check every key of Flower's flat run config.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        values = {}
        for f in fields(cls):
            name = f.metadata["name"] or f.name.replace("_", "-")
            if name not in run_config:
                raise ValueError(f"run config: key '{name}' is missing; pyproject.toml lists all")
            value = run_config[name]
            if f.type is float and type(value) is int:
                value = float(value)
            if type(value) is not f.type or not f.metadata["check"](value):
                kind = {int: "whole number", float: "number", bool: "truth value", str: "text"}
                raise ValueError(
                    f"run config: {name} = {run_config[name]!r} is not valid; "
                    f"allowed: {f.metadata['allowed']} ({kind[f.type]})"
                )
            values[f.name] = value
        return cls(**values)

    def source(self, num_partitions: int = 0) -> Source:
        """Return the data that the settings name, in as many parts as there are clients."""
        return Source(
            self.dataset,
            num_partitions,
            self.partitioning,
            self.dirichlet_alpha,
            self.min_partition_size,
            self.seed,
            self.cache_dir,
        )

    @property
    def options(self) -> Options:
        return Options(
            self.workers,
            self.memory_share,
            self.recycle_after,
            self.pool_idle,
            self.step_timeout,
        )

    @property
    def training(self) -> Training:
        return Training(
            self.local_epochs, self.batch_size, self.learning_rate, self.momentum, self.threads
        )
