"""What benchmarks/ measured, read back: results, tables, and the line that says how."""

import json
from typing import Any

from repository import ROOT


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def taken(measured: dict[str, Any]) -> str:
    """Say where and how a figure was measured, in a line."""
    hardware, packages = measured["hardware"], measured["packages"]
    return (
        f"*Measured on {measured['date']} at commit {measured['commit']} with "
        f"`{measured['command']}`: {hardware['cores']} cores of a {hardware['processor']}, "
        f"{hardware['gpu'] or 'no GPU'}, Python {measured['python']}, "
        f"flwr {packages['flwr']}, torch {packages['torch']}.*"
    )


def offline_on_digits(example: str) -> str:
    """Say what an offline run on the embedded digits reached."""
    accuracy = result("offline")["examples"][example]["last"]["accuracy"]
    return f"{accuracy:.2f} on digits"
