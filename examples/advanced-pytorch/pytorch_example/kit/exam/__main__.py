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
from pathlib import Path
from typing import Any

from flwr.common.config import parse_config_args

from .. import app_folder
from ..federation import exit_on_signals
from .app import App, NoApp
from .exam import Exam, ask
from .questions import QUESTIONS
from .report import table, write
from .verdict import FAIL, Verdict

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


def answers(exam: Exam, names: list[str]) -> dict[str, tuple[str, Verdict]]:
    """Ask questions; say and write what is known, as soon as it is."""
    texts = {name: (inspect.getdoc(QUESTIONS[name]) or "").splitlines()[0] for name in names}
    verdicts: dict[str, tuple[str, Verdict]] = {}
    began = time.monotonic()
    print(f"Running {exam.app.folder.name}, {len(names)} questions …", file=sys.stderr, flush=True)
    for name, verdict in ask(exam, {name: QUESTIONS[name] for name in names}):
        verdicts[name] = texts[name], verdict
        seconds = f"{time.monotonic() - began:4.0f} s"
        print(f"{seconds}  {verdict.verdict:<10}{texts[name]}", file=sys.stderr, flush=True)
        if verdict.verdict == FAIL:
            print(f"{'':8}{verdict.evidence}", file=sys.stderr, flush=True)
        verdicts = {each: verdicts[each] for each in names if each in verdicts}
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
        verdicts = answers(exam, [name for name in QUESTIONS if name in (given.only or QUESTIONS)])
    print(table(verdicts))
    bad = sum(verdict.verdict == FAIL for _, verdict in verdicts.values())
    seconds = time.monotonic() - began
    print(f"{len(verdicts)} questions, {bad} failed, in {seconds:.0f} s; details: {FILE}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
