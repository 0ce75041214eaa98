"""Results of benchmarks/: read, and put into tables with a line on how they were measured."""

import json
from typing import Any

from repository import ROOT


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def found(name: str) -> dict[str, Any] | None:
    """Return a result; None if it has not been measured yet."""
    return result(name) if (ROOT / "results" / f"{name}.json").is_file() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def taken(*results: dict[str, Any]) -> str:
    """Return a line on where and how figures were measured: each machine with its commands."""
    places: dict[str, list[str]] = {}
    for measured in results:
        how = f"on {measured['date']} at commit {measured['commit']} with `{measured['command']}`"
        places.setdefault(place(measured), []).append(how)
    each = (f"{', '.join(hows)}: {on}" for on, hows in places.items())
    return f"*Measured {'; '.join(each)}.*"


def place(measured: dict[str, Any]) -> str:
    hardware, packages = measured["hardware"], measured["packages"]
    return (
        f"{processor(hardware)}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}, "
        f"Python {measured['python']}, flwr {packages['flwr']}, torch {packages['torch']}"
    )


def processor(hardware: dict[str, Any]) -> str:
    """Return a processor's name, with its widest instructions if they are known."""
    return f"{hardware['processor']} {hardware.get('instructions', '')}".strip()


def no_gpu_figure(what: str) -> str:
    """Return the text in the place of GPU figures that have not been taken."""
    return (
        f"No GPU figure has been taken yet; `make check-gpu` takes them: {what}, in a table here."
    )


def offline_on_digits(example: str) -> str:
    """Return in short what an offline run on the embedded digits reached."""
    accuracy = result("offline")["examples"][example]["last"]["accuracy"]
    return f"accuracy {accuracy:.2f} on digits"


def offline_block(example: str) -> str:
    """Return a sentence on an offline run on the embedded digits: accuracy and time."""
    accuracy = result("offline")["examples"][example]["last"]["accuracy"]
    return (
        f"You end at a central accuracy of {accuracy:.2f}. With start-up it takes "
        f"{offline_seconds(example)}."
    )


def offline_seconds(example: str) -> str:
    """Return the time of an offline run on each kind of processor, in words."""
    measured = result("offline")
    seconds, hardware = measured["examples"][example]["seconds"], measured["hardware"]
    where = f"{hardware['cores']} cores of {processor(hardware)}"
    return f"{seconds:.0f} s on {where}{with_avx2(example, ', {:.0f} s with AVX2 alone')}"


def with_avx2(example: str, text: str) -> str:
    """Return a text with the seconds of an offline run with AVX2 alone, if they were measured."""
    measured = result("offline").get("avx2")
    return text.format(measured[example]["seconds"]) if measured else ""
