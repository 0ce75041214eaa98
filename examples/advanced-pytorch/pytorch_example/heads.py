"""Personal heads: kept in the clients' state, and given back to them after a resume."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from pytorch_example.config import Config

PERSONAL_HEAD = "personal-head"  # name of the record in a client's state and in messages


def carry_head(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Move the personal head from a message to the state; send it to the server after training.

    The server gives it back after a resume, when the state is empty. This mod stands before
    `clip_update`, because Flower's clipping takes one record of arrays in each direction.
    """
    if PERSONAL_HEAD in message.content:
        context.state[PERSONAL_HEAD] = message.content.pop(PERSONAL_HEAD)
    reply = call_next(message, context)
    config = Config.from_run_config(context.run_config)
    trained = message.metadata.message_type == MessageType.TRAIN and reply.has_content()
    if trained and config.personal_head and config.checkpoint_personal_heads:
        reply.content[PERSONAL_HEAD] = context.state[PERSONAL_HEAD]
    return reply


class WithPersonalHeads(Strategy):
    """A wrapper around any strategy that keeps the clients' personal heads.

    It takes them out of the replies: a strategy averages one record of arrays from each client.
    After a resume it gives each client its own head, once.

    Args:
        strategy: averages the models.
        partition_of: returns a node's partition by its id; a resumed run has other ids.
    """

    def __init__(self, strategy: Strategy, partition_of: Callable[[int], int]) -> None:
        self.strategy, self.partition_of = strategy, partition_of
        self.heads: dict[int, ArrayRecord] = {}  # by partition
        self.to_return: set[int] = set()  # partitions that wait for their head

    def state_dict(self) -> dict[str, Any]:
        """Return the heads, to be saved with the run."""
        return {"heads": self.heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the saved heads, all of them to be given back."""
        self.heads = dict(state.get("heads", {}))
        self.to_return = set(self.heads)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy configure the round; give back heads."""
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        return self.with_heads(messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy configure the round; give back heads."""
        messages = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return self.with_heads(messages)

    def with_heads(self, messages: Iterable[Message]) -> Iterable[Message]:
        for message in messages:
            partition = self.partition_of(message.metadata.dst_node_id)
            if partition in self.to_return:
                message.content = message.content.copy()  # clients share the content
                message.content[PERSONAL_HEAD] = self.heads[partition]
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the heads, and have the strategy average the rest."""
        replies = list(replies)
        self.note(replies)
        for reply in replies:
            if PERSONAL_HEAD in reply.content:
                partition = self.partition_of(reply.metadata.src_node_id)
                self.heads[partition] = reply.content.pop(PERSONAL_HEAD)
        return self.strategy.aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Have the strategy average the metrics."""
        replies = list(replies)
        self.note(replies)
        return self.strategy.aggregate_evaluate(server_round, replies)

    def note(self, replies: Iterable[Message]) -> None:
        """Note which clients have their head."""
        self.to_return -= {self.partition_of(reply.metadata.src_node_id) for reply in replies}

    def summary(self) -> None:
        self.strategy.summary()
