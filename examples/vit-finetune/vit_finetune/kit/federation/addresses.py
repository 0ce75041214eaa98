# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Addresses on this machine, reached from nowhere else."""

import socket

LOOPBACK = "127.0.0.1"


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses with ports that nobody uses, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((LOOPBACK, 0))
    addresses = [f"{LOOPBACK}:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
