"""Steps in the client's own process, which then keeps the device's context until it ends."""

from collections.abc import Callable
from typing import Any

from gpu_scaling.executors.outcome import StepFailed, describe


class Inline:
    """Runs a step as any function is called."""

    note = ""

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        try:
            return step(*args)
        except Exception as error:
            raise StepFailed(describe(error)) from error
