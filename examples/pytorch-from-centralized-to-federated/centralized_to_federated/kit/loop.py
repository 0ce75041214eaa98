# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The loop: rounds of any Flower strategy, with a seeded draw, checked replies, and resuming."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from logging import INFO, WARNING, LogRecord, getLogger
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .buffers import floats, moved, put_back, to_send, whole
from .clients import Clients, Draw, Drawn, TooFewReplies
from .guard import Guard
from .replies import metrics, problems, to_numpy, to_record, with_dimensions
from .run import Run
from .strategies import Keeper, only_trained, take_all, weight_key

TRAIN, EVALUATE = MessageType.TRAIN, MessageType.EVALUATE
PHASES = {TRAIN: "training", EVALUATE: "evaluation"}
Entry = dict[str, Any]  # a round in results.json
Figures = dict[int, MetricRecord]  # each client's metrics, by partition
Nodes = Mapping[int, int]  # node ids by partition
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def each_client(server_round: int, clients: list[Entry]) -> Entry:
    """Return the part of an entry of results.json that lists each client's figures."""
    return {"clients": clients}


class Loop:
    """The rounds of a run, in place of `Strategy.start`.

    The strategy sees only the nodes drawn for a phase, and takes all of them. It gets only replies
    that can be aggregated, sorted by partition, so that sums repeat; and only trained arrays:
    buffers are averaged, and counters kept, without it. After each round the model is saved, with
    what the strategy keeps.

    Args:
        strategy: any of Flower's, wrappers included.
        run: state of the run, and its folder.
        draw: draws the clients of a phase; by default all of them.
        buffers: names of arrays that are not trained, as `models.buffers` returns them.
        clients: those of the grid; by default the loop makes them.
        prepare: called before a phase with the nodes by partition and the round; returns the
            partitions that are ready to take part.
        train: trains a round in the strategy's place: takes the round and the drawn nodes, returns
            the new arrays, the metrics and each client's metrics.
        remarks: returns further keys of a round's entry in results.json; takes the round and each
            client's figures.
        on_round_end: called with each round's entry in results.json, once it is saved.
    """

    def __init__(
        self,
        strategy: Strategy,
        run: Run,
        draw: Draw | None = None,
        *,
        buffers: Collection[str] = (),
        clients: Clients | None = None,
        prepare: Callable[[Nodes, int], Collection[int]] | None = None,
        train: Callable[[int, Nodes], tuple[ArrayRecord, MetricRecord, Figures]] | None = None,
        remarks: Callable[[int, list[Entry]], Entry] = each_client,
        on_round_end: Callable[[Entry], None] | None = None,
    ) -> None:
        self.strategy = only_trained(strategy, buffers)
        self.run, self.config, self.buffers = run, run.config, buffers
        self.draw = draw or Draw(1.0, 1.0, run.config.min_replies, run.config.seed)
        self.clients, self.prepare, self.train = clients, prepare, train
        self.remarks, self.on_round_end = remarks, on_round_end
        self.noted: dict[int, Entry] = {}  # figures of this round's clients, by partition
        self.weight = weight_key(strategy)
        take_all(strategy)
        self.keeper = Keeper(strategy)
        self.keeper.restore(run.kept)
        self.guard = Guard(run.config.max_update_ratio, buffers)
        self.guard.longest |= run.kept.get("guard", {})

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> None:
        """Run the rounds that `run` does not hold yet, up to `stop-after` without a better score.

        The arguments are those of `Strategy.start`.

        Raises:
            TooFewReplies: what was aggregated so far is saved.
        """
        getLogger("flwr").addFilter(counts_all)
        run, strategy = self.run, self.strategy
        self.grid, self.timeout = grid, timeout
        self.clients = self.clients or Clients(grid, self.config)
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()

        if run.round < 0:
            run.arrays = whole(to_numpy(initial_arrays), self.buffers)
            central = evaluate_fn(0, to_record(run.arrays)) if evaluate_fn else None
            self.end_round(0, None, None, central)

        for server_round in range(run.round + 1, num_rounds + 1):
            if run.stalled:
                break
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            began = time.perf_counter()

            if self.train:
                nodes = self.drawn(server_round, TRAIN)
                new, trained, figures = self.train(server_round, nodes)
                run.arrays = to_numpy(new)
                self.note(TRAIN, figures)
            else:
                trained = self.trained(server_round, train_config)

            tested = central = None
            try:
                if tests := bool(self.draw.evaluate):
                    sent, view = to_send(run.arrays), self.view(server_round, EVALUATE)
                    messages = strategy.configure_evaluate(
                        server_round, floats(sent), evaluate_config, view
                    )
                    self.clients.send(put_back(messages, sent))
                arrays = to_record(run.arrays)
                central = evaluate_fn(server_round, arrays) if evaluate_fn else None  # meanwhile
                if tests and self.clients.awaited:
                    replies = self.good_replies(server_round, EVALUATE, None)
                    tested = strategy.aggregate_evaluate(server_round, replies)
            except TooFewReplies:
                self.end_round(server_round, trained, None, central)  # the model is not lost
                raise
            self.end_round(server_round, trained, tested, central)
            log(INFO, "Round took %.2f s", time.perf_counter() - began)

    def trained(self, server_round: int, config: ConfigRecord) -> MetricRecord | None:
        """Train a round, move the model, and return the metrics."""
        run, sent = self.run, to_send(self.run.arrays)
        view = self.view(server_round, TRAIN)
        messages = self.strategy.configure_train(server_round, floats(sent), config, view)
        self.clients.send(put_back(messages, sent))
        replies = self.good_replies(server_round, TRAIN, sent)
        whole_arrays = [reply.content["arrays"] for reply in replies]
        for reply in replies:
            reply.content["arrays"] = floats(reply.content["arrays"])
        new, metrics_of_round = self.strategy.aggregate_train(server_round, replies)
        if new is not None:
            run.arrays = moved(run.arrays, new, whole_arrays)
        return metrics_of_round

    def view(self, server_round: int, kind: str) -> Grid:
        """Return a grid with no other nodes than those of a phase's clients."""
        return cast(Grid, Drawn(self.grid, self.drawn(server_round, kind).values()))

    def drawn(self, server_round: int, kind: str) -> Nodes:
        """Draw the clients of a phase; return the nodes of those that are ready, by partition."""
        nodes = self.clients.connected()
        self.run.check_partitions(self.clients.num_partitions)
        sample = self.draw(nodes, server_round, kind)
        log(INFO, "%s: sampled %d of %d clients", kind, len(sample), len(nodes))
        ready = self.prepare(nodes, server_round) if self.prepare else sample
        for partition in sorted(set(sample) - set(ready)):
            log(WARNING, "Partition %d left out of %s: it is not ready", partition, PHASES[kind])
        return {partition: nodes[partition] for partition in sample if partition in ready}

    def good_replies(self, server_round: int, kind: str, sent: ArrayRecord | None) -> list[Message]:
        """Wait for a phase's replies and return those that can be aggregated, by partition.

        Raises:
            TooFewReplies: they are fewer than `min-replies`.
        """
        config, clients = self.config, self.clients
        replies = sorted(clients.receive(self.timeout), key=clients.partition_of)
        for reply in replies:
            with_dimensions(reply)
        found = problems(replies, self.weight, sent, self.guard)
        asked = {clients.partitions[node] for node in clients.awaited}
        silence = f"no reply within {config.key_of('round_timeout')}"
        left_out = dict.fromkeys(asked, silence)
        left_out |= dict(zip(map(clients.partition_of, replies), found, strict=True))
        for partition, problem in sorted(left_out.items()):
            if problem:
                log(WARNING, "Partition %d left out of %s: %s", partition, PHASES[kind], problem)
        good = [reply for reply, problem in zip(replies, found, strict=True) if not problem]
        if len(good) < config.min_replies:
            [(usual, _)] = Counter(filter(None, left_out.values())).most_common(1) or [("none", 0)]
            raise TooFewReplies(
                f"round {server_round}: {len(good)} of {len(asked)} {PHASES[kind]} replies can be "
                f"used, {config.key_of('min_replies')} = {config.min_replies}; the log names what "
                f"was left out, most often: {usual}"
            )
        self.note(kind, {clients.partition_of(reply): metrics(reply) for reply in good})
        return good

    def note(self, kind: str, figures: Figures) -> None:
        """Keep each client's own figures for results.json."""
        examples = "train_examples" if kind == TRAIN else "eval_examples"
        for partition, values in figures.items():
            noted = self.noted.setdefault(partition, {"partition": partition})
            for name, value in values.items():
                noted[examples if name == self.weight else name] = value

    def end_round(
        self,
        server_round: int,
        trained: MetricRecord | None,
        tested: MetricRecord | None,
        central: MetricRecord | None,
    ) -> None:
        """Add the round's entry to the run, and save the run."""
        run = self.run
        measured = {
            "train_metrics": dict(trained or {}),
            "evaluate_metrics_clientapp": dict(tested or {}),
            "evaluate_metrics_serverapp": dict(central or {}),
        }
        for part, values in measured.items():
            if values:
                log(INFO, "%s: %s", part, ", ".join(map(as_text, values.items())))
        clients = [self.noted[partition] for partition in sorted(self.noted)]
        self.noted = {}
        entry = {"round": server_round} | measured | self.remarks(server_round, clients)
        run.history.append(entry)
        run.round = server_round
        run.kept = self.keeper.state() | {"guard": dict(self.guard.longest)}
        if central and "accuracy" in central and central["accuracy"] >= run.best_accuracy:
            run.best_round, run.best_accuracy = server_round, central["accuracy"]
        run.save()
        if self.on_round_end:
            self.on_round_end(entry)


def as_text(metric: tuple[str, int | float | list]) -> str:
    """Return a metric for the log: a number, or a list of numbers."""
    name, value = metric
    return f"{name} {value}" if isinstance(value, list) else f"{name} {value:.4f}"


def counts_all(record: LogRecord) -> bool:
    """Drop a strategy's line on how many nodes it took: of the drawn ones, it took all."""
    return "Sampled %s nodes" not in str(record.msg)
