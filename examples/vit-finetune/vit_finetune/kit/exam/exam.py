# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""An exam: the runs that several questions share, made once."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from .app import App
from .runs import Outcome, Runs
from .verdict import Verdict
from .witness import Case

Question = Callable[["Exam"], Verdict]


class CannotRun(RuntimeError):
    """The app does not run to its end as it is, so that there is nothing to compare."""


class Exam:
    """An app, its runs, and what was seen of the first of them.

    Args:
        app: what is examined.
        scratch: a folder for all that runs write.
        deploy: whether real SuperNodes are started, too.
    """

    def __init__(self, app: App, scratch: Path, deploy: bool = False) -> None:
        self.app, self.runs, self.scratch, self.deploy = app, Runs(app, scratch), scratch, deploy

    def case(self, name: str, settings: dict[str, Any] | None = None, **more: Any) -> Case:
        return Case(name, settings or {}, more.pop("nodes", self.app.nodes), **more)

    @cached_property
    def first(self) -> Outcome:
        """An uninterrupted run, of which all is noted."""
        [outcome] = self.runs.make(self.case("first", snapshots=True, inputs=True))
        if outcome.ended_well:
            self.runs.limit = max(60.0, 20 * outcome.seconds)
            self.runs.preload_more(outcome.modules)
        return outcome

    @property
    def good(self) -> Outcome:
        """The first run, which others are compared with.

        Raises:
            CannotRun: it did not end well.
        """
        if not self.first.ended_well:
            raise CannotRun(f"a run that ends well; the first one: {self.first.error}")
        return self.first

    @property
    def victim(self) -> int:
        """A client that trains in the first round, and is not the one whom others echo."""
        return self.good.trainers()[-1]

    @cached_property
    def echo(self) -> Outcome:
        """A run in which all clients send what one of them does."""
        whose = self.good.trainers()[0]
        [outcome] = self.runs.make(self.case("echo", echo=whose))
        return outcome
