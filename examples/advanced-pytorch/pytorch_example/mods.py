"""What happens to a message on its way into the client and out again: Flower calls these mods."""

from flwr.app import Context, Message, MessageType
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from pytorch_example.config import PERSONAL_HEAD, Config


def carry_head(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take the personal head out of a message into the state; send it home after training.

    The server hands it back after a resume, since the state began empty. This mod stands before
    `clip_update`, because Flower's clipping takes one record of arrays each way.
    """
    if PERSONAL_HEAD in message.content:
        context.state[PERSONAL_HEAD] = message.content.pop(PERSONAL_HEAD)
    reply = call_next(message, context)
    config = Config.from_run_config(context.run_config)
    trained = message.metadata.message_type == MessageType.TRAIN and reply.has_content()
    if trained and config.personal_head and config.checkpoint_personal_heads:
        reply.content[PERSONAL_HEAD] = context.state[PERSONAL_HEAD]
    return reply


def clip_update(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Have Flower shorten what training changed to `dp.clipping-norm`, where privacy is on."""
    if not Config.from_run_config(context.run_config).private:
        return call_next(message, context)
    reply = fixedclipping_mod(message, context, call_next)
    # Its own refusals answer the reply, not the message: the server would wait for round-timeout.
    return Message(reply.error, reply_to=message) if reply.has_error() else reply
