# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What comes of a question."""

from dataclasses import dataclass, field
from typing import Any

PASS, FAIL, NOT_ASKED = "pass", "FAIL", "not asked"


@dataclass
class Verdict:
    """A verdict, what was seen, what to do about it, and figures for exam.json."""

    verdict: str
    evidence: str
    way_out: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def passed(evidence: str, **details: Any) -> Verdict:
    return Verdict(PASS, evidence, details=details)


def failed(evidence: str, way_out: str, **details: Any) -> Verdict:
    return Verdict(FAIL, evidence, way_out, details)


def not_asked(needs: str) -> Verdict:
    return Verdict(NOT_ASKED, f"needs {needs}")
