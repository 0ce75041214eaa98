# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Examine an app: does it resume, repeat, survive a bad client, keep its data to itself?

Runs the app many times, in processes of their own, with its offline settings and few rounds; says
for each question what was seen and, where it failed, the way out; writes exam.json where you stand.
"""

import argparse
import inspect
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from flwr.common.config import parse_config_args

from .. import app_folder
from ..federation import exit_on_signals
from .app import App, NoApp
from .exam import CannotRun, Exam
from .questions import QUESTIONS
from .report import table, write
from .verdict import FAIL, Verdict, failed, not_asked

FILE = "exam.json"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", type=Path, default=app_folder(), help="by default this one")
    parser.add_argument("--num-supernodes", type=int, default=0, help="number of clients")
    parser.add_argument(
        "--run-config", action="append", help="'key=value key=value', or a TOML file"
    )
    parser.add_argument(
        "--only", nargs="+", choices=QUESTIONS, metavar="QUESTION", help=", ".join(QUESTIONS)
    )
    parser.add_argument("--deploy", action="store_true", help="start real SuperNodes, too")
    return parser.parse_args(words)


def ask(exam: Exam, names: list[str]) -> dict[str, tuple[str, Verdict]]:
    """Ask questions, say how far it is, and write what is known by then."""
    verdicts: dict[str, tuple[str, Verdict]] = {}
    for number, name in enumerate(names, start=1):
        text = (inspect.getdoc(QUESTIONS[name]) or "").splitlines()[0]
        print(f"[{number}/{len(names)}] {text} …", end=" ", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            verdict = QUESTIONS[name](exam)
        except CannotRun as error:
            verdict = not_asked(str(error))
        except Exception as error:
            told = f"the question itself ends with {type(error).__name__}: {error}"
            trace = traceback.format_exc().splitlines()
            verdict = failed(told, f"{FILE} has the traceback", traceback=trace)
        verdicts[name] = text, verdict
        seconds = time.monotonic() - began
        print(f"{verdict.verdict} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        if verdict.verdict == FAIL:
            print(f"    {verdict.evidence}", file=sys.stderr, flush=True)
        write(Path(FILE), exam.app.folder, verdicts)
    return verdicts


def main(words: list[str] | None = None) -> int:
    given = parse(words)
    if not hasattr(os, "fork"):
        print("Error: an exam forks its runs, which Windows cannot", file=sys.stderr)
        return 2
    exit_on_signals()
    changes: dict[str, Any] = {}
    for text in given.run_config or []:
        changes |= parse_config_args([text])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="exam-") as scratch:
        try:
            exam = Exam(App(given.app, changes, given.num_supernodes), Path(scratch), given.deploy)
        except NoApp as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
        try:
            exam.runs.preload()
        except Exception as error:
            where = f"{given.app}: its modules cannot be imported"
            print(f"Error: {where}: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
        verdicts = ask(exam, [name for name in QUESTIONS if name in (given.only or QUESTIONS)])
    print(table(verdicts))
    bad = sum(verdict.verdict == FAIL for _, verdict in verdicts.values())
    seconds = time.monotonic() - began
    print(f"{len(verdicts)} questions, {bad} failed, in {seconds:.0f} s; details: {FILE}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
