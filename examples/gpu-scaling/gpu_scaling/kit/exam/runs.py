# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Runs of an app, each in a fork of this process, which has imported the app and run nothing."""

import gc
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..in_process import load
from ..processes import cores, end_with_parent, kill_descendants
from .app import App
from .witness import Case, Record, play

AT_ONCE = min(2, cores())
EXAM = f"{__package__}."
COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass
class Outcome(Record):
    """What came of a run.

    Args:
        log: what it wrote.
        folder: where it stood.
        seconds: that it took.
    """

    log: str = ""
    folder: Path = Path()
    seconds: float = 0.0

    @property
    def ended_well(self) -> bool:
        return self.error == ""

    @property
    def outputs(self) -> Path | None:
        """The folder that the run wrote to first, as a resume takes it; None: it wrote nothing."""
        return outputs_of(self.folder)

    def trainers(self, server_round: int = 1) -> list[int]:
        """Return the partitions that were asked to train in a round."""
        found = [r for r in self.replies if (r["kind"], r["round"]) == ("train", server_round)]
        return sorted({reply["partition"] for reply in found})


class Runs:
    """Makes runs, two at a time where there are two cores.

    Args:
        app: what is run.
        scratch: a folder for all that runs write.
    """

    def __init__(self, app: App, scratch: Path) -> None:
        self.app, self.scratch = app, scratch.resolve()
        self.planned, self.waiting = 0, list[tuple[int, int, Case]]()  # rank, ticket and run
        self.started = dict[int, tuple[int, Case, Path, float]]()  # by process
        self.outcomes = dict[int, Outcome]()  # by ticket
        self.limit = 0.0  # seconds, once it is known how long a run takes
        os.environ.setdefault("WANDB_MODE", "disabled")
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

    def preload(self) -> None:
        """Import the app, so that a fork need not; its caches go into the scratch folder.

        Raises:
            Exception: whatever the app's own modules raise.
        """
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        os.environ.setdefault("HF_HOME", f"{home}/huggingface")  # what is downloaded stays
        os.environ["XDG_CACHE_HOME"] = str(self.scratch / "cache")
        for component in self.app.components:
            load(self.app.folder, component)

    def preload_more(self, names: list[str]) -> None:
        """Import what a run has imported beside the app's own modules: the next need not."""
        own = {component.split(".")[0] for component in self.app.components}
        for name in names:
            if name not in sys.modules and name.split(".")[0] not in own:
                with suppress(Exception):
                    import_module(name)

    def plan(self, cases: list[Case], rank: int = 0) -> list[int]:
        """Have runs made when there is a core for them, and return a ticket for each.

        Args:
            cases: the runs.
            rank: those of a lower one are made first.
        """
        tickets = list(range(self.planned, self.planned + len(cases)))
        self.planned += len(cases)
        self.waiting += zip([rank] * len(cases), tickets, cases, strict=True)
        self.waiting.sort(key=lambda waits: waits[:2])
        return tickets

    @property
    def are_idle(self) -> bool:
        """Whether a core has nothing to do."""
        return not self.waiting and len(self.started) < AT_ONCE

    def go_on(self) -> None:
        """Start what waits while cores are free, and keep what has come of runs that ended."""
        while self.waiting and len(self.started) < AT_ONCE:
            _, ticket, case = self.waiting.pop(0)
            self.start(ticket, case)
        for pid in list(self.started):
            self.look_after(pid)

    def have(self, tickets: list[int]) -> bool:
        return all(ticket in self.outcomes for ticket in tickets)

    def take(self, tickets: list[int]) -> list[Outcome]:
        return [self.outcomes.pop(ticket) for ticket in tickets]

    def make(self, case: Case) -> Outcome:
        """Make one run and return what came of it."""
        tickets = self.plan([case])
        while not self.have(tickets):
            self.go_on()
            time.sleep(0.005)
        return self.take(tickets)[0]

    def end(self) -> None:
        """End all runs."""
        for pid in list(self.started):
            self.kill(pid)

    def start(self, ticket: int, case: Case) -> None:
        """Fork a run."""
        name = re.sub(r"[^\w.-]+", "-", case.name)[:60]
        place = self.scratch / f"{ticket:03}-{name}"
        work = place / "work"
        if case.start:
            shutil.copytree(case.start, work)
        else:
            work.mkdir(parents=True)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            self.started[pid] = ticket, case, place, time.monotonic()
            return
        try:
            gc.freeze()  # a collection need not look through all that was imported before
            os.setsid()
            end_with_parent(parent)
            self.run(case, place)
        except BaseException:
            (place / "fault").write_text(traceback.format_exc())
        finally:
            with suppress(BaseException):
                kill_descendants()
            os._exit(0)

    def run(self, case: Case, place: Path) -> None:
        """Make the run, in the fork."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
        for handler in logging.getLogger("flwr").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)
        os.chdir(place / "work")
        os.environ["XDG_CACHE_HOME"] = str(case.cache or self.scratch / "cache")
        app = case.app or self.app.folder
        forget(self.app.package, None if case.cache else app)  # its folder may be a constant
        settings = dict(self.app.settings)
        if (resume := self.app.key("resume")) and case.start:
            settings[resume] = str(outputs_of(Path()))
        record, before = Record(), set(sys.modules)
        play(app, case, settings, record)
        record.modules = [name for name in sys.modules if name not in before]
        sys.stdout.flush()
        (place / "record").write_bytes(pickle.dumps(vars(record)))

    def look_after(self, pid: int) -> None:
        """Keep what came of a run, if it has ended; end it, if it takes too long."""
        ticket, case, place, began = self.started[pid]
        seconds, limit = time.monotonic() - began, self.limit or case.seconds
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and seconds < limit:
            return
        self.kill(pid)
        outcome = Outcome(folder=place / "work", seconds=seconds)
        outcome.log = COLOUR.sub("", (place / "log").read_text(errors="replace"))
        if (place / "record").is_file():
            for name, value in pickle.loads((place / "record").read_bytes()).items():
                setattr(outcome, name, value)
        elif (place / "fault").is_file():
            outcome.error = (place / "fault").read_text().strip().splitlines()[-1]
        elif not done:
            outcome.error = f"it took more than {limit:.0f} s"
        else:
            outcome.error = f"its process ended with status {os.waitstatus_to_exitcode(status)}"
        self.outcomes[ticket] = outcome

    def kill(self, pid: int) -> None:
        """End a run and what it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        del self.started[pid]


def outputs_of(folder: Path) -> Path | None:
    """Return the folder of the first files below another; with an absolute path."""
    files = [path for path in folder.resolve().rglob("*") if path.is_file()]
    return min((path.parent for path in files), key=lambda p: len(p.parts), default=None)


def forget(package: str, kept: Path | None) -> None:
    """Drop an app's modules, unless they are of the copy in a folder; not those of the exam."""
    places = getattr(sys.modules.get(package), "__path__", [])
    for folder in [Path(place).resolve().parent for place in places]:
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None) or ""
            own = name == "__main__" or f"{name}.".startswith(EXAM)
            ours = path.startswith(f"{folder}/") and "site-packages" not in path
            if ours and folder != kept and not own:
                del sys.modules[name]
