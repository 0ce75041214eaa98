# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A federation on this machine: a SuperLink and SuperNodes, with or without TLS."""

from .addresses import free_addresses
from .federation import (
    LEFT_OUT,
    NAME,
    Federation,
    FederationError,
    Part,
    exit_on_signals,
    uninterrupted,
)

__all__ = [
    "LEFT_OUT",
    "NAME",
    "Federation",
    "FederationError",
    "Part",
    "exit_on_signals",
    "free_addresses",
    "uninterrupted",
]
