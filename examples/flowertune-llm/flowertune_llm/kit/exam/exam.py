# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""An exam: its questions, and the run that all of them begin with."""

import time
import traceback
from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from inspect import isgenerator
from pathlib import Path
from typing import Any

from .app import App
from .runs import Outcome, Runs
from .verdict import Verdict, failed, not_asked
from .witness import Case

# What a question does: it yields runs that it needs, gets what came of them, and returns a verdict.
Steps = Generator[list[Case], list[Outcome], Verdict]
Question = Callable[["Exam"], Verdict | Steps]


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
        """An uninterrupted run, of which all is noted; it begins without a cache."""
        outcome = self.runs.make(self.case("first", snapshots=True, inputs=True))
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


class Asked:
    """A question on its way to its verdict.

    Args:
        exam: that asks it.
        question: what is asked.
        rank: its place; the runs of an earlier one are made first.
    """

    def __init__(self, exam: Exam, question: Question, rank: int) -> None:
        self.runs, self.rank, self.steps = exam.runs, rank, steps(exam, question)
        self.verdict: Verdict | None = None
        self.tickets: list[int] = []  # of the runs that it waits for
        self.go_on(None)

    def go_on(self, outcomes: list[Outcome] | None) -> None:
        """Give the question what it waits for."""
        try:
            self.tickets = self.runs.plan(self.steps.send(outcomes), self.rank)
        except StopIteration as end:
            self.verdict = end.value
        except CannotRun as error:
            self.verdict = not_asked(str(error))
        except Exception as error:
            told = f"the question itself ends with {type(error).__name__}: {error}"
            trace = traceback.format_exc().splitlines()
            self.verdict = failed(told, "exam.json has the traceback", traceback=trace)


def steps(exam: Exam, question: Question) -> Steps:
    asked = question(exam)
    return (yield from asked) if isgenerator(asked) else asked


def ask(exam: Exam, questions: dict[str, Question]) -> Iterator[tuple[str, Verdict]]:
    """Yield the verdict of each question as it comes.

    The next question is asked when a core would have nothing to do.
    """
    runs, left = exam.runs, list(enumerate(questions))
    going: dict[str, Asked] = {}
    try:
        while left or going:
            if left and runs.are_idle:
                rank, name = left.pop(0)
                going[name] = Asked(exam, questions[name], rank)
            else:
                time.sleep(0.005)
            runs.go_on()
            for name, asked in list(going.items()):
                while not asked.verdict and runs.have(asked.tickets):
                    asked.go_on(runs.take(asked.tickets))
                if asked.verdict:
                    del going[name]
                    yield name, asked.verdict
    finally:
        runs.end()
