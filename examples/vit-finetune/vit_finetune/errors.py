"""Errors of a ServerApp, so that Flower shows them."""

from collections.abc import Callable
from functools import wraps

from flwr.app import Context
from flwr.serverapp import Grid

Main = Callable[[Grid, Context], None]


class RunFailed(Exception):
    """The run ended early; the text says why."""


def shown(main: Main) -> Main:
    """Let a ServerApp fail with `RunFailed` where it would have with a `RuntimeError`.

    Flower 1.25 takes a `RuntimeError` for its own "Failed to start run": the text is lost, and
    the run is listed as running for another minute.
    """

    @wraps(main)
    def wrapped(grid: Grid, context: Context) -> None:
        try:
            main(grid, context)
        except RuntimeError as error:
            raise RunFailed(str(error)).with_traceback(error.__traceback__) from None

    return wrapped
