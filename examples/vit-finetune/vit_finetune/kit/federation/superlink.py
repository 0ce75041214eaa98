# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""`flower-superlink`, with a fault of the pinned release mended; it takes the same options.

A SuperNode may ask for a message's content before the SuperLink has all of it. It should be told to
ask again, but Flower 1.25 answers with an error ("Both bytes_sent and bytes_recv cannot be zero").
The SuperNode then drops the message, its reply never comes, and the round lasts until
`round-timeout`. This happens more often with large models and busy servers.
"""

import sys
from collections.abc import Callable

try:
    from flwr.server.app import run_superlink
    from flwr.server.superlink.linkstate import InMemoryLinkState, SqliteLinkState
except ImportError:
    sys.exit("flower-superlink of this Flower release has the fault mended: start that")

StoreTraffic = Callable[..., None]


def without_empty(store_traffic: StoreTraffic) -> StoreTraffic:
    """Return a `store_traffic` that ignores an answer without content."""

    def store(state: object, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        if bytes_sent or bytes_recv:
            store_traffic(state, run_id, bytes_sent=bytes_sent, bytes_recv=bytes_recv)

    return store


if __name__ == "__main__":
    for kind in (InMemoryLinkState, SqliteLinkState):
        kind.store_traffic = without_empty(kind.store_traffic)
    sys.exit(run_superlink())
