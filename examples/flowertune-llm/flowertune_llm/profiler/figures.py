"""Figures of a profile: sums over rounds and nodes, and cells of tables."""

from collections.abc import Iterator
from typing import Any

from flowertune_llm.profiler.recorder import SUMS, Row
from flowertune_llm.profiler.sources import Profile


def complete(profile: Profile, by: str) -> dict[str, Any]:
    """Return a profile with the rows of the two tables: `summary` and `network`."""
    network = [{"round": e["round"]} | row for e in profile["rounds"] for row in e["network"]]
    return profile | {"summary": summary(profile, by), "network": network}


def summary(profile: Profile, by: str) -> list[Row]:
    """Return a row for each task and scope: over the whole run, or for each round or node."""
    keys = [*[by] * (by != "run"), "task", "scope"]
    groups: dict[tuple, list[Row]] = {}
    for entry in profile["rounds"]:
        for row in entry["tasks"]:
            row = {"round": entry["round"]} | row
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, key, strict=True)) | merged(rows) for key, rows in groups.items()]


def merged(rows: list[Row]) -> Row:
    """Return the figures of several rows as one row's."""
    count = sum(row["count"] for row in rows)
    total: Row = {"count": count}
    for name in rows[0]:
        if name.endswith("_mean"):
            total[name] = sum(row[name] * row["count"] for row in rows) / count
        elif name.endswith("_max"):
            total[name] = max(row[name] for row in rows)
        elif name in SUMS:
            total[name] = sum(row[name] for row in rows)
    return total | {"io": sorted({row["io"] for row in rows})}


def headline(profile: Profile) -> str:
    """Return the state of a run in a line; round 0 is the test before training."""
    count = sum(entry["round"] > 0 for entry in profile["rounds"])
    took = in_time(sum(entry["seconds"] for entry in profile["rounds"]))
    return f"{profile['status']}, {count} round{'s' * (count != 1)} in {took}"


def notes(shown: dict[str, Any]) -> Iterator[str]:
    """Return lines on what the tables leave out: unusual counters, messages without figures."""
    counted: dict[str, set[str]] = {}
    for row in shown["summary"]:
        for io in set(row["io"]) - {"io_counters"}:
            counted.setdefault(io, set()).add(f"{row['task']} ({row['scope']})")
    for io, names in sorted(counted.items()):
        yield f"read and written: io_counters missing, fall-back {io}: {', '.join(sorted(names))}"
    rows = shown["network"]
    for text, count in (
        ("answered with an error", sum(row["failed"] for row in rows)),
        ("not answered", sum(row["messages"] - row["replies"] - row["failed"] for row in rows)),
        ("timed both ways only, clocks apart", sum(row["timed"] - row["split"] for row in rows)),
    ):
        if count:
            yield f"messages {text}: {count}"


def task_cells(rows: list[Row]) -> list[dict[str, str]]:
    """Return the table of tasks: for each row, the text of each column."""
    table, gpu = [], any(row["device_bytes_max"] for row in rows)
    for row in rows:
        names = [name for name in ("round", "node", "task", "scope") if name in row]
        cells = {name: "server" if row[name] is None else str(row[name]) for name in names}
        cells |= {"avg time": in_time(row["seconds_mean"]), "max time": in_time(row["seconds_max"])}
        cells["memory"] = in_bytes(row["memory_bytes_max"])
        cells["change"] = in_bytes(row["memory_change_bytes_mean"], "+")
        cells |= {"GPU memory": in_bytes(row["device_bytes_max"])} if gpu else {}
        cells |= {"read": in_bytes(row["read_bytes"]), "written": in_bytes(row["written_bytes"])}
        table.append(cells | {"count": str(row["count"])})
    return table


def network_cells(rows: list[Row]) -> list[dict[str, str]]:
    """Return the table of the network: for each row, the text of each column."""
    table = []
    for row in rows:
        cells = {"round": str(row["round"]), "messages": row["task"]}
        cells["count"] = str(row["messages"])
        for way in ("down", "up", "both"):
            cells[way] = in_time(row.get(f"{way}_seconds_mean"))
        cells["max both"] = in_time(row.get("both_seconds_max"))
        cells |= {f"bytes {way}": in_bytes(row[f"{way}_bytes"]) for way in ("down", "up")}
        table.append(cells | {"bytes both": in_bytes(row["down_bytes"] + row["up_bytes"])})
    return table


def in_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def in_bytes(count: float, sign: str = "") -> str:
    """Return a number of bytes in the largest unit that fits; with `sign` "+", a plus, too."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:{sign}.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1024
    return f"{count:{sign}.2f} GiB"
