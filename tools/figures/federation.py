"""Figures of a round between real processes: docs/deployment.md."""

from typing import Any

from measured import result, table, taken
from repository import ROOT

PAGE = ROOT / "docs" / "deployment.md"
RELEASES = ("pinned", "newest")
STAGES = {
    "look": "the SuperNode's next look for a message",
    "launch": "start of the ClientApp's process",
    "app": "imports, data, the work, the look for the reply",
    "send": "the reply's way to the SuperLink",
}


def rounds_block() -> str:
    """Return a table of where the seconds of a round go, in each release, warm and not."""
    measured = {release: result(f"federation-rounds-{release}") for release in RELEASES}
    columns: dict[str, dict[str, Any]] = {
        f"{found['packages']['flwr']}, {'warm' if row['warm'] else 'not warm'}": row
        for found in measured.values()
        for row in found["rows"]
    }
    rows = [["**a round**", *(f"**{row['median_seconds']:.1f}**" for row in columns.values())]]
    for kind, phase in (("train", "training"), ("evaluate", "testing")):
        for stage, what in STAGES.items():
            cells = [f"{row['stages'][kind][stage]:.1f}" for row in columns.values()]
            rows.append([f"{phase}: {what}", *cells])
    alone = " and ".join(
        f"{found['one_process']['median_seconds']:.1f} s with {found['packages']['flwr']}"
        for found in measured.values()
    )
    return (
        f"{table(['seconds', *columns], rows)}\n\n"
        "A SuperLink and two SuperNodes over TLS, advanced-pytorch offline; medians over rounds "
        "after the first, the stages those of one SuperNode, so that a round, which waits for the "
        f"slower one, is more than their sum. The same round in one process: {alone}. "
        f"{taken(*measured.values())}"
    )


BLOCKS = {"rounds": rounds_block}
