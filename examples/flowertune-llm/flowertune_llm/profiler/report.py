"""Show the costs of a run, from profile.json beside its results or from its log on a SuperLink."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from flowertune_llm.profiler.figures import complete, headline, network_cells, notes, task_cells
from flowertune_llm.profiler.page import page
from flowertune_llm.profiler.sources import (
    NoProfile,
    Profile,
    folder_of,
    from_folder,
    from_superlink,
)

WIDTH = 140  # of tables that go to a file or a pipe
LIVE_ROUNDS = 10  # in the network table of a run that is followed: they fit on a screen


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="flwr-profile", description=__doc__)
    made.add_argument("run", help="run id, or output folder: outputs/<date>/<time>")
    made.add_argument("--by", choices=("run", "round", "node"), default="run", help="rows of tasks")
    made.add_argument("--live", action="store_true", help="follow the run until it ends")
    made.add_argument("--format", choices=("table", "json"), default="table")
    made.add_argument("--html", type=Path, metavar="FILE", help="write one page with charts, too")
    made.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where runs lie")
    made.add_argument("--app", type=Path, help="of a run on a SuperLink: the app's folder [.]")
    made.add_argument("--federation", help="of a run on a SuperLink: as `flwr` knows it")
    return made


def main() -> int:
    """Return the exit status: 0, or 1 if there is nothing to show."""
    options = parser()
    arguments = options.parse_args()
    on_superlink = arguments.app is not None or arguments.federation is not None
    if on_superlink and not arguments.run.isdecimal():
        options.error(f"{arguments.run}: a run on a SuperLink is named by its id, a number")
    try:
        if on_superlink:
            place = arguments.app or Path(), arguments.federation
            profiles = from_superlink(int(arguments.run), *place, arguments.live)
        else:
            folder = folder_of(arguments.run, arguments.output_dir)
            profiles = from_folder(folder, arguments.live)
        show(profiles, arguments)
    except (NoProfile, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the usual end of --live
        return 0
    return 0


def show(profiles: Iterator[Profile], arguments: argparse.Namespace) -> None:
    """Print each profile, and write it as a page if asked for."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    following = arguments.live and arguments.format == "table"
    with Live(console=console, auto_refresh=False) if following else nullcontext() as live:
        for profile in profiles:
            if arguments.html:
                arguments.html.write_text(page(complete(profile, "run")), encoding="utf-8")
            if arguments.format == "json":
                print(json.dumps(complete(profile, arguments.by)), flush=True)
            elif live:
                live.update(tables(profile, arguments.by), refresh=True)
            else:
                console.print(tables(profile, arguments.by))


def tables(profile: Profile, by: str) -> Group:
    shown = complete(profile, by)
    network = shown["network"]
    if profile["status"] == "running" and network:
        network = [row for row in network if row["round"] > network[-1]["round"] - LIVE_ROUNDS]
    return Group(
        f"Run {profile['run_ids'][-1]}: {headline(profile)}",
        table("Tasks", task_cells(shown["summary"]), 2 + (by != "run")),
        table("Network", network_cells(network), 2),
        *notes(shown),
    )


def table(title: str, rows: list[dict[str, str]], names: int) -> Table:
    """Return a table: names in its first columns, figures in the others."""
    made = Table(title=title, title_justify="left")
    for i, name in enumerate(rows[0] if rows else []):
        made.add_column(name, justify="left" if i < names else "right")
    for row in rows:
        made.add_row(*row.values())
    return made


if __name__ == "__main__":
    sys.exit(main())
